"""The label column of one data file, as far as its rows are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LabelColumn"]


@dataclass(frozen=True)
class LabelColumn:
    """What the label column says, row by row."""

    name: str
    """Of the column."""
    source: str
    """Of the data, for error messages."""
    cells: list[str]
    """Texts; a list is JSON."""
    numbers: Sequence[int]
    """Line or row of each cell."""
    unit: str
    """What ``numbers`` counts: ``line`` or ``row``."""
    declared: tuple[str, ...] | None = None
    """Labels in the order that the dataset declares; None if it declares none."""

    def where(self, row: int) -> str:
        """Return how an error names a cell: ``Line 7 of data.csv``."""
        return f"{self.unit.capitalize()} {self.numbers[row]} of {self.source}"
