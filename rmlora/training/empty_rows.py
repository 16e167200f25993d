"""Cells of a data file without an input: which rows have them, and what is said of rows that are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rmlora.errors import InputError
from rmlora.inputs import Inputs
from rmlora.training.table import Reading, Table
from rmlora.unicode_text import is_unicode
from rmlora.wording import counted, numbers

__all__ = ["empty_cells", "explain_empty", "explain_incomplete"]


def empty_cells(inputs: Inputs, table: Table, names: Sequence[str], source: str) -> dict[str, list[int]]:
    """Return column → rows without an input in it; raise :class:`InputError` for a cell that holds something else."""
    empty: dict[str, list[int]] = {}
    for name in names:
        cells = table.columns[name]
        several = len(names) > 1
        empty[name] = [
            row
            for row in range(table.rows)
            if inputs.is_empty(cells[row]) or (several and not isinstance(cells[row], str))
        ]
        _refuse_other_values(cells, empty[name], table, name, source)
        _refuse_broken_texts(cells, table, name, source)
    return empty


def _refuse_other_values(cells: Sequence[Any], rows: Sequence[int], table: Table, column: str, source: str) -> None:
    """Raise :class:`InputError` if a cell that holds no input holds something else: that is no row to leave out."""
    for row in rows:
        value = cells[row]
        kind = next((words for types, words in _OTHER_VALUES if isinstance(value, types)), None)
        if kind is not None and value == value:  # NaN, with which tools fill empty cells, is not
            raise InputError(
                f"{table.unit.capitalize()} {table.numbers([row])[0]} of {source} has {kind} in '{column}', where a text belongs: "
                "write it as one text."
            )


def _refuse_broken_texts(cells: Sequence[Any], table: Table, column: str, source: str) -> None:
    """Raise :class:`InputError` if a text in a cell cannot be written, before a tokenizer refuses it without naming its row."""
    for row, value in enumerate(cells):
        texts = value if isinstance(value, (list, tuple)) else [value]
        if not all(is_unicode(text) for text in texts if isinstance(text, str)):
            raise InputError(
                f"{table.unit.capitalize()} {table.numbers([row])[0]} of {source} has a text in '{column}' that is not valid Unicode: it "
                "holds half of a surrogate pair; correct or remove it."
            )


_OTHER_VALUES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    ((list, tuple), "a list"),
    (dict, "an object"),
)
"""Types of values that are no inputs → what they are called."""


def explain_empty(empty: Mapping[str, Sequence[int]], table: Table, source: str, reading: Reading | None) -> str:
    """Return the sentence about rows that are left out; raise :class:`InputError` with it if they may not be."""
    listed = [
        f"{table.unit if len(rows) == 1 else table.unit + 's'} {numbers(table.numbers(rows))} {'has' if len(rows) == 1 else 'have'} "
        f"no '{column}'"
        for column, rows in empty.items()
        if rows
    ]
    count = len({row for rows in empty.values() for row in rows})
    if reading is not None and reading.skip_empty:
        return f"Left out {counted(count, 'row')} of {source}: {'; '.join(listed)}."
    what = "it" if count == 1 else "them"
    otherwise = f"remove {what}" if reading is None else f"leave {what} out with --skip-empty"
    first, _, rest = listed[0].partition(" ha")
    start = f"{first.capitalize()} of {source} ha{rest}"
    raise InputError(f"{'; '.join([start, *listed[1:]])}: fill {what} in or {otherwise}.")


def explain_incomplete(
    rows: Sequence[int], table: Table, source: str, reading: Reading | None, *, lack: tuple[str, str]
) -> str:
    """Return the sentence about rows without one of two things; raise :class:`InputError` unless they may be left out.

    Args:
        rows: at least one.
        table: the data.
        source: where it is.
        reading: how the user wants it read, to train on it; None to measure a finished adapter.
        lack: what the rows lack one of, or both.
    """
    listed = f"{table.unit if len(rows) == 1 else table.unit + 's'} {numbers(table.numbers(rows))}"
    one, other = lack
    if reading is None or reading.skip_empty:
        return f"Left out {counted(len(rows), 'row')} of {source} without {one} or {other}: {listed}."
    has = "has" if len(rows) == 1 else "have"
    raise InputError(
        f"{listed.capitalize()} of {source} {has} no {one} or no {other}: fill in what is missing, or leave such rows out with "
        "--skip-empty."
    )
