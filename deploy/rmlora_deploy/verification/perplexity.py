"""Perplexity of models on texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["perplexity", "surprise"]

Logits = npt.NDArray[Any]

_MOST = 700.0
"""Nats a token, beyond which the perplexity would not be a number."""


def surprise(logits: Logits, tokens: Sequence[int]) -> float:
    """Return the sum of the negative log-probabilities of every token but the first, in nats.

    Args:
        logits: ``[positions, vocabulary]`` of the text.
        tokens: of the text.
    """
    wide = logits[:-1].astype(np.float64)
    largest = wide.max(-1, keepdims=True)
    totals = np.log(np.exp(wide - largest).sum(-1)) + largest[:, 0]
    return float((totals - wide[np.arange(len(wide)), list(tokens[1:])]).sum())


def perplexity(model: Callable[[Sequence[int]], Logits], windows: Sequence[Sequence[int]]) -> tuple[float, int]:
    """Return the perplexity of a model over all ``windows``, and the number of tokens that it predicted.

    Args:
        model: from tokens to logits ``[positions, vocabulary]``.
        windows: texts, each of at least two tokens.
    """
    total = sum(surprise(model(window), window) for window in windows)
    count = sum(len(window) - 1 for window in windows)
    return float(np.exp(min(total / max(1, count), _MOST))), count
