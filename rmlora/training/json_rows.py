"""Reading rows from json and jsonl files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmlora.errors import InputError
from rmlora.training.table import Table

__all__ = ["read_json_document", "read_json_rows"]


def read_json_rows(path: Path, text: str) -> Table:
    """Return rows from one JSON object per line or, if the file is ``.json``, from a list of objects or object of columns.

    Args:
        path: of the file, for its suffix and for error messages.
        text: the file's content.

    Raises:
        InputError: the file holds something else.
    """
    if path.suffix.lower() == ".json" and (document := read_json_document(path, text)) is not None:
        return _from_document(document, path)
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_parsed(line, number, path))
            lines.append(number)
    return _table(rows, path, lines)


def read_json_document(path: Path, text: str) -> Any:
    """Return the value that a file holds; None if it holds several, one per line, as in jsonl.

    Args:
        path: of the file, for error messages.
        text: the file's content.

    Raises:
        InputError: the file holds no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise _unreadable(path, f"line {error.lineno} is not valid JSON: {error.msg}") from None
        return None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from None


def _parsed(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _unreadable(path, f"line {number} is not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"line {number}: {error}") from None


def _from_document(document: Any, path: Path) -> Table:
    if isinstance(document, dict):
        lists = {str(key): value for key, value in document.items() if isinstance(value, list)}
        if len(lists) == 1 and all(isinstance(row, dict) for row in next(iter(lists.values()))):
            return _table(next(iter(lists.values())), path, None)  # {"data": [{…}, …]}
        if lists and len(lists) == len(document) and len({len(value) for value in lists.values()}) == 1:
            return Table(lists, len(next(iter(lists.values()))))  # {"text": […], "label": […]}
        document = [document]
    return _table(document if isinstance(document, list) else [document], path, None)


def _table(rows: Sequence[Any], path: Path, lines: Sequence[int] | None) -> Table:
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            where = f"line {lines[number]}" if lines is not None else f"row {number + 1}"
            raise _unreadable(path, f"{where} is not an object with named columns")
    names = dict.fromkeys(str(key) for row in rows for key in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(columns, len(rows), lines=lines)


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"{path} cannot be read as a dataset ({reason}): check its format.")
