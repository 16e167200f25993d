"""Torch datasets of token rows: what they have in common, and those for a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch.utils.data import Dataset

from rmlora.training.answer_tokens import EncodedRow

__all__ = ["IGNORED", "LanguageRows", "Row", "TokenRows", "padded"]

IGNORED = -100
"""Label of a token whose prediction is not learned."""


Row = dict[str, Any]
Collator = Callable[[Sequence[Row]], dict[str, torch.Tensor]]


class TokenRows(Dataset[Row]):
    """Rows with ``input_ids`` of different lengths."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens in every row."""
        return [len(row["input_ids"]) for row in self._rows]

    @property
    def longest(self) -> int:
        """Index of the row with the most tokens."""
        lengths = self.lengths
        return lengths.index(max(lengths))


class LanguageRows(TokenRows):
    """One row each; the collator pads a batch on the right to its longest row.

    Args:
        rows: with their answers.
        padding: token to pad with; it is masked.
        collator: makes batches in another way.
    """

    def __init__(self, rows: Sequence[EncodedRow], padding: int, collator: Collator | None = None) -> None:
        super().__init__([{"input_ids": row.ids, "labels": _labels(row)} for row in rows])
        self._padding, self._collator = padding, collator

    @classmethod
    def of(cls, rows: Sequence[Row], padding: int, collator: Collator | None = None) -> Self:
        """Return rows that have their labels already."""
        made = cls([], padding, collator)
        made._rows = list(rows)
        return made

    @property
    def answer_tokens(self) -> int:
        """Number of tokens in all rows that are learned."""
        return sum(label != IGNORED for row in self._rows for label in row["labels"])

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return int64 ``input_ids``, ``attention_mask`` and ``labels``, each ``[rows, tokens]``."""
        if self._collator is not None:
            return self._collator(rows)
        ones = [[1] * len(row["input_ids"]) for row in rows]
        return {
            "input_ids": padded([row["input_ids"] for row in rows], self._padding),
            "attention_mask": padded(ones, 0),
            "labels": padded([row["labels"] for row in rows], IGNORED),
        }


def _labels(row: EncodedRow) -> list[int]:
    """Return each token that is learned, else :data:`IGNORED`; a row's first token follows nothing."""
    labels = [token if learned else IGNORED for token, learned in zip(row.ids, row.answer, strict=True)]
    return [IGNORED, *labels[1:]]


def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Return rows as a tensor ``[rows, tokens]``, with ``value`` to the right of shorter ones."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
