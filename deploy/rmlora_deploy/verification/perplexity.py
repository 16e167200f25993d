"""Perplexity of models on texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Window", "perplexity", "surprise"]

Logits = npt.NDArray[Any]


class Window(NamedTuple):
    """A text whose tokens are predicted with one context."""

    tokens: list[int]
    start: int = 1
    """First token whose prediction counts: an answer's, if what is asked comes before it."""


_BLOCK = 64
"""Positions that are read at a time."""

_MOST = 700.0
"""Nats a token, beyond which the perplexity would not be a number."""


def surprise(logits: Logits, window: Window) -> float:
    """Return the sum of the negative log-probabilities of the tokens that count, in nats.

    Args:
        logits: ``[positions, vocabulary]`` of the text.
        window: the text.
    """
    tokens, start = window
    total = 0.0
    for first in range(start, len(tokens), _BLOCK):  # in float64 a whole text may not fit into memory
        following = list(tokens[first : first + _BLOCK])
        wide = logits[first - 1 : first - 1 + len(following)].astype(np.float64)
        largest = wide.max(-1, keepdims=True)
        totals = np.log(np.exp(wide - largest).sum(-1)) + largest[:, 0]
        total += float((totals - wide[np.arange(len(wide)), following]).sum())
    return total


def perplexity(model: Callable[[Sequence[int]], Logits], windows: Sequence[Window]) -> tuple[float, int]:
    """Return the perplexity of a model over all ``windows``, and the number of tokens that it predicted.

    Args:
        model: from tokens to logits ``[positions, vocabulary]``.
        windows: texts, each with at least one token that counts.
    """
    total = sum(surprise(model(window.tokens), window) for window in windows)
    count = sum(len(window.tokens) - window.start for window in windows)
    return float(np.exp(min(total / max(1, count), _MOST))), count
