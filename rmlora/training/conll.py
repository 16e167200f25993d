"""Reading CoNLL files: a word and its tag on every line, an empty line after every sentence."""

from __future__ import annotations

import re
from pathlib import Path

from rmlora.entities import OUTSIDE
from rmlora.errors import InputError
from rmlora.text_lines import text_lines
from rmlora.training.table import Table
from rmlora.wording import counted

__all__ = ["CONLL_SUFFIXES", "read_conll"]

CONLL_SUFFIXES = (".conll", ".conll03", ".bio", ".iob", ".iob2", ".txt")
_PREFIXED = re.compile(r"[BIESLU]-.+")


def read_conll(path: Path, text: str, tag_column: str | None = None) -> Table:
    """Return the columns ``tokens`` and ``tags``, a row for each sentence.

    Columns of a line are separated by tabs or, if no line has one, by spaces; the first is the word. Lines that begin a document
    (``-DOCSTART-``), and comments in front of a sentence, are no words.

    Args:
        path: of the file, for error messages.
        text: the file's content.
        tag_column: number of the column with the tags, counted from 1; None takes the last.

    Raises:
        InputError: a line has no tag, or another number of columns than the others.
    """
    lines = text_lines(text)
    separator = re.compile("\t" if any("\t" in line for line in lines) else " +")
    sentences: list[tuple[int, list[str], list[str]]] = []
    comments, columns, inside = 0, 0, False
    for number, line in enumerate(lines, 1):
        fields = separator.split(line.strip(" "))
        if not line.strip() or fields[0].startswith("-DOCSTART-"):
            inside = False
        elif not inside and line.startswith("#") and not _tagged(fields, columns):
            comments += 1
        else:
            columns = columns or len(fields)
            if len(fields) != columns or columns < 2:
                what = counted(len(fields), "column")
                others = "each needs a word and its tag" if columns < 2 else f"the first has {columns}"
                raise InputError(
                    f"Line {number} of {path} has {what}, and {others}: write one word and its tag on a line, with a tab or a "
                    "space between them, and an empty line after every sentence."
                )
            if not inside:
                sentences.append((number, [], []))
            sentences[-1][1].append(fields[0])
            sentences[-1][2].append(fields[_position(tag_column, columns, path)])
            inside = True
    notes = (f"{counted(comments, 'line')} of {path} that begin with # were read as comments.",) if comments else ()
    table = {"tokens": [words for _, words, _ in sentences], "tags": [tags for _, _, tags in sentences]}
    return Table(table, len(sentences), lines=[number for number, _, _ in sentences], notes=notes)


def _tagged(fields: list[str], columns: int) -> bool:
    """Return True if the columns of a line that begins with # are a word and its tag."""
    return len(fields) == (columns or 2) and (fields[-1] == OUTSIDE or _PREFIXED.fullmatch(fields[-1]) is not None)


def _position(tag_column: str | None, columns: int, path: Path) -> int:
    if tag_column is None:
        return columns - 1
    if not tag_column.isascii() or not tag_column.isdigit() or not 1 <= int(tag_column) <= columns:
        raise InputError(
            f"{path} has {columns} columns without names: give --label-column as a number from 2 to {columns}, not '{tag_column}'."
        )
    return int(tag_column) - 1
