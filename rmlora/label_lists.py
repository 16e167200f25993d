"""Cells of a label column that hold several labels or numbers: a list as JSON or Python writes it, or names with marks between."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

__all__ = ["SEPARATORS", "read_list", "split_cell"]

SEPARATORS = "|;,"
"""Marks that may stand between names; the first of these that a cell has divides it."""


def read_list(cell: str) -> list[Any] | None:
    """Return the items of a cell like ``["a", "b"]`` or, as pandas writes it to csv, ``['a', 'b']``; None if it is no list."""
    if not cell.lstrip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            items = read(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return items if isinstance(items, list) else None
    return None


def split_cell(cell: str, labels: Sequence[str] = ()) -> list[str]:
    """Return what a cell holds, as texts; an item of a list that is the number of one of ``labels`` becomes its name."""
    items = read_list(cell)
    if items is None:
        separator = next((mark for mark in SEPARATORS if mark in cell), None)
        return [cell.strip()] if separator is None else [p.strip() for p in cell.split(separator) if p.strip()]
    numbered = {str(number): label for number, label in enumerate(labels)}
    return [str(item) if str(item) in labels else numbered.get(str(item), str(item)) for item in items]
