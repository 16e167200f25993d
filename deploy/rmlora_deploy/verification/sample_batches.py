"""Real inputs of several shapes to verify on, and keeping them with PyTorch's answers in the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime.outputs import Arrays

__all__ = ["TEXTS", "make_sample_batches", "sample_inputs"]

_SIZES = (1, 2, 5, 8)
"""Rows of the batches; texts differ in length, so each batch has another width."""

TEXTS = (
    "Free entry in a weekly competition to win cup final tickets, text now!",
    "What is the capital of Iceland ?",
    "Ok, see you at seven.",
    "The committee published its report on Tuesday, after a delay of several months that nobody could explain.",
    "Yes",
    "Why do leaves change their color in the autumn, and not all of them at the same time ?",
    "I have never been so disappointed by a film that had such a good cast.",
    "Your parcel could not be delivered; please call us between nine and five to arrange another day.",
    "How many moons does Jupiter have ?",
    "It rained all morning, then the sun came out, and by four o'clock the whole town was down at the river.",
    "Lol no way",
    "Who wrote the novel in which a whale is hunted around the world by a captain with one leg ?",
    "Thanks for your message, I will answer as soon as I am back in the office next week.",
    "URGENT! Your account was suspended, reply with your number to claim a prize of 1000 pounds.",
    "Where can I find a good recipe for bread ?",
    "A quiet, patient film about two brothers and the farm they grew up on.",
)
"""Sentences of one to twenty words for where no data is given."""


def sample_inputs(preprocessor: Preprocessor, data: Sequence[Any] | None) -> list[Any]:
    """Return sixteen inputs: spread over ``data`` where it is given, else built-in sentences or images."""
    count = sum(_SIZES)
    if data:
        return [data[i] for i in np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)]
    if preprocessor.task.modality == "text":
        return [TEXTS[i % len(TEXTS)] for i in range(count)]
    return [_picture(number) for number in range(count)]


def make_sample_batches(preprocessor: Preprocessor, inputs: Sequence[Any]) -> list[Arrays]:
    """Return batches of 1, 2, 5 and 8 rows over ``inputs``, as far as they reach."""
    batches, start = [], 0
    for size in _SIZES:
        chunk = list(inputs[start : start + size])
        if chunk:
            batches.append(preprocessor(chunk))
        start += size
    return batches


def _picture(number: int) -> Any:
    """Return a picture with the smooth gradients and edges of a photograph, different for every number."""
    from PIL import Image

    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160 + 16 * number, 200), Image.Resampling.BICUBIC)
