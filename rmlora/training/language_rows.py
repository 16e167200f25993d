"""Torch datasets of token rows: what they have in common, and those for language models with and without an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch.utils.data import Dataset

from rmlora.training.answer_rows import AnswerRow
from rmlora.training.answer_tokens import EncodedRow
from rmlora.training.ignored import IGNORED

__all__ = ["AnswerRows", "LanguageRows", "LearnedRows", "Row", "Shift", "TokenRows", "padded"]

Row = dict[str, Any]
Shift = Callable[[torch.Tensor], torch.Tensor]
"""From the tokens of answers, padded with :data:`IGNORED`, to what a decoder reads: each token stands one place later."""


class TokenRows(Dataset[Row]):
    """Rows with ``input_ids`` of different lengths."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    @property
    def count(self) -> int:
        """Number of examples: here each has one row."""
        return len(self._rows)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens in every row."""
        return [len(row["input_ids"]) for row in self._rows]

    @property
    def longest(self) -> int:
        """Index of the row with the most tokens."""
        lengths = self.lengths
        return lengths.index(max(lengths))

    @property
    def highest_token(self) -> int:
        """The highest number of a token in all rows."""
        return max(max(row["input_ids"], default=0) for row in self._rows)


class LearnedRows(TokenRows):
    """Rows with a list of ``labels``: a number where something is learned, else :data:`IGNORED`."""

    @property
    def learned(self) -> int:
        """Number of labels in all rows that are learned."""
        return sum(label != IGNORED for row in self._rows for label in row["labels"])


class LanguageRows(LearnedRows):
    """One row each; the collator pads a batch on the right to its longest row.

    Args:
        rows: with their answers.
        padding: token to pad with; it is masked.
    """

    def __init__(self, rows: Sequence[EncodedRow], padding: int) -> None:
        super().__init__([{"input_ids": row.ids, "labels": _labels(row)} for row in rows])
        self._padding = padding

    @classmethod
    def of(cls, rows: Sequence[Row], padding: int) -> Self:
        """Return rows that have their labels already."""
        made = cls([], padding)
        made._rows = list(rows)
        return made

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return int64 ``input_ids``, ``attention_mask`` and ``labels``, each ``[rows, tokens]``."""
        return _padded_batch(rows, self._padding)


class AnswerRows(LearnedRows):
    """Prompts for an encoder, and the answers that the decoder learns.

    Args:
        rows: prompts and answers.
        padding: token to pad prompts with; it is masked.
        shift: the model's own, from answers to what its decoder reads.
    """

    def __init__(self, rows: Sequence[AnswerRow], padding: int, shift: Shift) -> None:
        super().__init__([{"input_ids": row.prompt, "labels": row.answer} for row in rows])
        self._padding, self._shift = padding, shift

    @property
    def highest_token(self) -> int:
        """The highest number of a token in all prompts and answers."""
        return max(super().highest_token, max(max(row["labels"], default=0) for row in self._rows))

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return int64 ``input_ids``, ``attention_mask``, ``decoder_input_ids`` and ``labels``, each ``[rows, tokens]``."""
        batch = _padded_batch(rows, self._padding)
        return {**batch, "decoder_input_ids": self._shift(batch["labels"])}


def _padded_batch(rows: Sequence[Row], padding: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": padded([row["input_ids"] for row in rows], padding),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
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
