"""Rows of labeled data as columns, wherever they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Reading", "Table"]


@dataclass(frozen=True)
class Reading:
    """How the user wants data to be read."""

    skip_empty: bool = False
    """Leave out rows without input or label; False refuses them."""
    encoding: str | None = None
    """Encoding of csv, tsv and json files; None takes UTF-8 or what a byte order mark says."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length."""

    columns: Mapping[str, Sequence[Any]]
    """Name → values. A column may be read only when it is asked for."""
    rows: int
    """Length of every column."""
    lines: Sequence[int] | None = None
    """Line of the file in which each row begins; None if rows have no lines."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column of label numbers → the names that the dataset declares for them."""
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read."""

    def numbers(self, rows: Sequence[int]) -> list[int]:
        """Return the line, or else the number counted from 1, of every row in ``rows``."""
        return [self.lines[row] if self.lines is not None else row + 1 for row in rows]

    @property
    def unit(self) -> str:
        """What :meth:`numbers` counts: ``line`` or ``row``."""
        return "row" if self.lines is None else "line"
