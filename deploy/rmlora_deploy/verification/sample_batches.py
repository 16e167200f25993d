"""Real inputs of several shapes to verify on, and keeping them with PyTorch's answers in the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime.outputs import Arrays

__all__ = ["make_sample_batches", "sample_inputs"]

_SIZES = (1, 2, 5, 8)
"""Rows of the batches; texts differ in length, so each batch has another width."""


def sample_inputs(preprocessor: Preprocessor, data: Sequence[Any] | None) -> list[Any]:
    """Return sixteen inputs: spread over ``data`` where it is given, else built-in sentences or images."""
    count = sum(_SIZES)
    if data:
        return [data[i] for i in np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)]
    return preprocessor.task.inputs.sample(count)


def make_sample_batches(preprocessor: Preprocessor, inputs: Sequence[Any]) -> list[Arrays]:
    """Return batches of 1, 2, 5 and 8 rows over ``inputs``, as far as they reach."""
    batches, start = [], 0
    for size in _SIZES:
        chunk = list(inputs[start : start + size])
        if chunk:
            batches.append(preprocessor(chunk))
        start += size
    return batches
