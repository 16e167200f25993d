"""Reading csv and tsv files: separator, quotes and line numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from rmlora.errors import InputError
from rmlora.training.table import Table
from rmlora.wording import counted

__all__ = ["read_delimited"]

_SEPARATORS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}
_LONGEST_CELL = 1 << 30
"""Characters; the csv module's own limit, 131,072, is too low for documents."""

_HEADER = 1 << 16
"""Characters in which the header is looked for."""


def read_delimited(path: Path, wanted: Collection[str], text: str) -> Table:
    """Return the rows of a csv or tsv file; every cell is text.

    The separator is the one under which the header has most of the ``wanted`` columns, else the one that belongs to the
    file's suffix. A quote at the start of a cell in a file with tabs is part of the text if every line has as many tabs as
    the header; otherwise cells with quotes are read as RFC 4180 says.

    Args:
        path: of the file, for its suffix and for error messages.
        wanted: usual or chosen names of columns, in lower case.
        text: the file's content.

    Raises:
        InputError: a line does not fit the header.
    """
    if not text.strip():
        raise InputError(f"{path} is empty: there is nothing to train on.")
    csv.field_size_limit(_LONGEST_CELL)
    first, _, rest = text.partition("\n")
    declared = re.fullmatch(r"sep=([,;|\t])\r?", first)  # Excel's own line
    if declared:
        text = rest
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    separator = declared[1] if declared else _separator(text, usual, wanted)
    literal = separator == "\t" and _lines_are_rows(text)
    records = _records(text, separator, path, literal=literal, offset=1 if declared else 0)
    _, names = next(records, (1, []))
    names = [name.strip() for name in names]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise InputError(f"The header of {path} has the column '{twice}' twice: rename one.")
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in names]
    for line, cells in records:
        for column, cell in zip(columns, _fitted(cells, names, line, path, separator), strict=True):
            column.append(cell)
        lines.append(line)
    notes = [f"{path}: the columns are separated by {_SEPARATORS[separator]}."] if separator != usual else []
    return Table(dict(zip(names, columns, strict=True)), len(lines), lines=lines, notes=tuple(notes))


def _separator(text: str, usual: str, wanted: Collection[str]) -> str:
    def score(separator: str) -> tuple[int, bool, bool]:
        try:
            names = next(csv.reader(io.StringIO(text[:_HEADER], newline=""), delimiter=separator), [])
        except csv.Error:
            names = []
        known = sum(name.strip().lower() in wanted for name in names)
        return known, len(names) > 1, separator == usual

    return max(_SEPARATORS, key=score)


def _lines_are_rows(text: str) -> bool:
    """Return True if all lines have the same number of tabs: then no cell contains a line break."""
    counts = {line.count("\t") for line in re.split(r"\r\n|\r|\n", text) if line}
    return len(counts) == 1


def _records(text: str, separator: str, path: Path, *, literal: bool, offset: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line and the cells of each record; lines without any text are left out."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL,
        strict=not literal,
    )
    start, all_quoted = 1, False
    try:
        for number, cells in enumerate(reader):
            if literal:
                all_quoted = all_quoted or (number == 0 and all(_is_quoted(cell) for cell in cells))
                cells = [_unquoted(cell, always=all_quoted) for cell in cells]
            if cells:
                yield start + offset, cells
            start = reader.line_num + 1
    except csv.Error as error:
        if "end of data" in str(error):
            raise InputError(
                f"The quote that begins a cell in line {start + offset} of {path} is never closed: close it, or put the "
                "whole cell in quotes and double those inside."
            ) from None
        raise InputError(
            f"The row of {path} that begins in line {start + offset} has a quoted cell that goes on after its closing quote: "
            "double the quotes inside it."
        ) from None


def _is_quoted(cell: str) -> bool:
    """Return True if ``cell`` is a text in quotes in which all quotes are doubled."""
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _unquoted(cell: str, *, always: bool) -> str:
    """Return the content of a quoted cell; a plain text in quotes keeps them unless the file quotes ``always``."""
    quoted = _is_quoted(cell) and (always or '""' in cell[1:-1])
    return cell[1:-1].replace('""', '"') if quoted else cell


def _fitted(cells: Sequence[str], names: Sequence[str], line: int, path: Path, separator: str) -> list[str]:
    """Return one cell per column; missing ones are empty, and empty ones too many are dropped."""
    if any(cell.strip() for cell in cells[len(names) :]):
        raise InputError(
            f"Line {line} of {path} has {counted(len(cells), 'cell')}, but the header has {counted(len(names), 'column')}: put "
            f"quotes around a text that contains {_SEPARATORS[separator]}."
        )
    return [*cells[: len(names)], *[""] * (len(names) - len(cells))]
