"""From the cells of a label column to label names and their numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rmlora.errors import ConfigError, InputError, some_of
from rmlora.wording import counted

__all__ = ["label_names", "number_labels", "numbers_labels", "order_labels", "sort_labels"]

_WHOLE = re.compile(r"-?\d{1,18}")
"""Digits that ``int()`` takes; ``str.isdigit`` is also true of ①, which it does not."""


def label_names(
    values: Sequence[Any], declared: Sequence[str] | None, *, source: str, numbers: Sequence[int], unit: str,
    several: bool = False,
) -> list[str | None]:  # fmt: skip
    """Return the label of every row as text; None if a cell is empty.

    Whole numbers stored as floats are written as whole numbers: tools write ``1.0`` where a column has empty cells.

    Args:
        values: cells of the label column.
        declared: names that the dataset declares for label numbers; None if it declares none.
        source: of the data, for error messages.
        numbers: line or row of each cell.
        unit: what ``numbers`` counts.
        several: a cell may hold a list of labels, which becomes JSON; an empty list is a row without labels.

    Raises:
        InputError: a cell holds several labels, and ``several`` is not set.
    """
    if several:
        return [_several(value, declared) for value in values]
    for number, value in zip(numbers, values, strict=True):
        if isinstance(value, (list, tuple, dict)) or (isinstance(value, str) and _is_list(value)):
            raise InputError(
                f"{unit.capitalize()} {number} of {source} has several labels, {_brief(value)}, but training is for one label "
                "per row: give the rows one label, or choose another --label-column."
            )
    if declared is not None:
        return [_declared(value, declared) for value in values]
    names = [_name(value) for value in values]
    present = [name for name in names if name is not None]
    if any("." in name for name in present) and all(_is_whole(name) for name in present):
        return [None if name is None else name.partition(".")[0] for name in names]
    return names


def order_labels(
    names: Sequence[str], declared: Sequence[str] | None, given: Sequence[str] | None, *, source: str
) -> tuple[str, ...]:
    """Return the labels in the order of the head's outputs.

    Args:
        names: label of every row of the training data.
        declared: labels in the order that the dataset declares; None if it declares none.
        given: labels that the user gave; None if none. Data may name them or number them from 0.
        source: of the training data, for error messages.

    Raises:
        InputError: there are fewer than two labels.
        ConfigError: the data has a label that ``given`` lacks.
    """
    if given is not None:
        for name in dict.fromkeys(names):
            if _index(name, given) is None:
                raise ConfigError(
                    f"{source} has the label '{name}', which --labels lacks (it has {some_of(given)}): add it, or correct the data."
                )
    order = tuple(given or declared or sort_labels(set(names)))
    if len(set(names)) < 2:
        raise InputError(f"{source} has only one label ('{names[0]}'): classification needs at least two.")
    return order


def number_labels(
    names: Sequence[str], labels: Sequence[str], *, source: str, unknown: str, numbered: bool = False
) -> list[int]:
    """Return for every row the index of its label.

    Args:
        names: label of every row.
        labels: in the order of the head's outputs.
        source: of the rows, for error messages.
        unknown: end of the error's "has the label 'x', …".
        numbered: accept the index of a label in place of its name.

    Raises:
        InputError: a label is not among ``labels``.
    """
    index: dict[str, int | None] = {label: number for number, label in enumerate(labels)}
    found: list[int] = []
    for name in names:
        if name not in index:
            index[name] = _index(name, labels, numbered=numbered)
        number = index[name]
        if number is None:
            rows = sum(other == name for other in names)
            raise InputError(
                f"{source} has the label '{name}', {unknown}: it is in {counted(rows, 'row')}; check the label column."
            )
        found.append(number)
    return found


def numbers_labels(names: Sequence[str], labels: Sequence[str]) -> bool:
    """Return True if rows number labels that have names: all are whole numbers, 0 among them, and no label is one.

    Args:
        names: label of every row.
        labels: in the order of the head's outputs.
    """
    if any(_is_whole(label) for label in labels) or not all(_is_whole(name) for name in set(names)):
        return False
    return any(int(name.partition(".")[0]) == 0 for name in set(names))  # data that counts from 1 means other labels


def sort_labels(labels: set[str]) -> list[str]:
    """Return labels in order: numbers by size, if all are."""
    return sorted(labels, key=int) if all(_WHOLE.fullmatch(label) for label in labels) else sorted(labels)


def _index(name: str, labels: Sequence[str], *, numbered: bool = True) -> int | None:
    """Return the index of the label called ``name``, of an equal number, or at that position; None if there is none."""
    if name in labels:
        return list(labels).index(name)
    if not _is_whole(name):
        return None
    value = int(name.partition(".")[0])
    equal = [
        number for number, label in enumerate(labels) if _is_whole(label) and int(label.partition(".")[0]) == value
    ]
    if equal:
        return equal[0]
    return value if numbered and 0 <= value < len(labels) else None


def _name(value: Any) -> str | None:
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _several(value: Any, declared: Sequence[str] | None) -> str | None:
    if not isinstance(value, (list, tuple)):
        return _declared(value, declared) if declared is not None and isinstance(value, int) else _name(value)
    return json.dumps([_declared(item, declared) if declared is not None else _name(item) for item in value])


def _declared(number: Any, declared: Sequence[str]) -> str | None:
    return declared[number] if isinstance(number, int) and 0 <= number < len(declared) else None


def _is_whole(name: str) -> bool:
    return re.fullmatch(r"-?\d{1,18}(\.0+)?", name) is not None


def _is_list(text: str) -> bool:
    if not text.lstrip().startswith(("[", "{")):
        return False
    try:
        return isinstance(json.loads(text.replace("'", '"')), list | dict)
    except (ValueError, RecursionError):
        return False


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
