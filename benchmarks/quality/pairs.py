"""Graded pairs of sentences: their examples and their score (torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.training.features import TextExamples

__all__ = ["PairExamples", "rank_correlation"]


class PairExamples(TextExamples):
    """Pairs of texts, tokenized together, each with a number.

    Args:
        pairs: the two texts of every example.
        grades: a number for each.
        tokenizer: of the base.
        max_length: tokens of a pair; the longer text is cut first.
    """

    def __init__(
        self, pairs: Sequence[tuple[str, str]], grades: Sequence[float], tokenizer: Any, max_length: int
    ) -> None:
        from transformers import DataCollatorWithPadding

        encoded = tokenizer(
            [first for first, _ in pairs], [second for _, second in pairs], truncation=True, max_length=max_length
        )
        self._rows = [{**{key: encoded[key][i] for key in encoded}, "labels": grade} for i, grade in enumerate(grades)]
        self.collate = DataCollatorWithPadding(tokenizer)


def rank_correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return Spearman's correlation; equal values share the mean of their ranks. 0 if one side is constant."""
    a, b = _ranks(np.asarray(first)), _ranks(np.asarray(second))
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else 0.0


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(np.cumsum(counts) - (counts - 1) / 2)[inverse]
