"""Sample batches of several shapes to verify on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from rmlora.inputs import Arrays
from rmlora.text_pair import InputForm
from rmlora_deploy.bundles.preprocess import Preprocessor

__all__ = ["batch_shapes", "make_sample_batches", "sample_inputs"]

_SIZES = (1, 2, 5, 8)
"""Rows per batch; texts differ in length, so each batch has a different width."""


def sample_inputs(
    preprocessor: Preprocessor, data: Sequence[Any] | None, forms: Collection[InputForm | None] = ()
) -> list[Any]:
    """Return sixteen inputs: evenly spaced ones of ``data`` if it is given, else built-in sentences, pairs of them, or images.

    Args:
        preprocessor: of the graph.
        data: inputs to take them from.
        forms: what the adapters were trained on; single texts and pairs alternate if there are both.
    """
    count = sum(_SIZES)
    if data:
        return [data[i] for i in np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)]
    sample = preprocessor.task.inputs.sample
    if "pair" not in forms:
        return sample(count)
    pairs = sample(count, "pair")
    if set(forms) == {"pair"}:
        return pairs
    return [one for both in zip(sample(count // 2), pairs, strict=False) for one in both]


def make_sample_batches(preprocessor: Preprocessor, inputs: Sequence[Any]) -> list[Arrays]:
    """Return batches of 1, 2, 5 and 8 rows from ``inputs``, as far as these go."""
    batches, start = [], 0
    for size in _SIZES:
        chunk = list(inputs[start : start + size])
        if chunk:
            batches.append(preprocessor(chunk))
        start += size
    return batches


def batch_shapes(batches: Sequence[Arrays]) -> list[list[int]]:
    """Return the shape of the first input of every batch."""
    return [list(next(iter(batch.values())).shape) for batch in batches]
