"""Which kind of targets a label column holds: what the user says, else what its cells can only mean."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from rmlora.errors import ConfigError
from rmlora.label_lists import SEPARATORS, read_list, split_cell
from rmlora.scoring import ProblemType
from rmlora.training.label_column import LabelColumn
from rmlora.training.one_label_problem import OneLabelProblem
from rmlora.training.problem import Problem
from rmlora.training.regression_problem import RegressionProblem
from rmlora.training.several_labels_problem import SeveralLabelsProblem

__all__ = ["PROBLEMS", "choose_problem"]

PROBLEMS: dict[ProblemType, Problem] = {
    problem.name: problem for problem in (OneLabelProblem(), SeveralLabelsProblem(), RegressionProblem())
}
"""Problem type → object."""

_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_MANY = 20
"""So many different whole numbers may be a measure as well as names."""


def choose_problem(
    chosen: ProblemType | None, column: LabelColumn, labels: Sequence[str] | None
) -> tuple[Problem, str | None]:
    """Return the problem, and a note about how the column was understood if that could surprise.

    Args:
        chosen: by the user; None decides by the cells.
        column: of the training data.
        labels: names that the user gave; None if none.

    Raises:
        ConfigError: the cells can mean more than one thing.
    """
    if chosen is not None:
        return PROBLEMS[chosen], None
    lists = [items for cell in column.cells if (items := read_list(cell)) is not None]
    if lists:
        return _of_lists(column, lists)
    if labels is None and column.declared is None:
        if all(_is_number(cell) for cell in column.cells):
            return _of_numbers(column)
        if all(_is_number(cell.replace(",", ".", 1)) for cell in column.cells):
            comma = next(cell for cell in column.cells if "," in cell)
            raise ConfigError(
                f"'{column.name}' of {column.source} has cells like '{comma[:60]}': write decimals with a point to predict a number, or "
                "pass --problem-type if they name labels."
            )
        _refuse_strays(column)
        if (found := _of_parts(column)) is not None:
            return found
    return PROBLEMS["single_label_classification"], None


def _of_lists(column: LabelColumn, lists: Sequence[Sequence[object]]) -> tuple[Problem, str | None]:
    where = f"'{column.name}' of {column.source}"
    if len(lists) < len(column.cells):
        raise ConfigError(
            f"{where} has lists in {len(lists)} of {len(column.cells)} rows: pass --problem-type multi_label_classification if "
            "the other rows have one label each, or make the rows alike."
        )
    if any(_is_fraction(str(item)) for items in lists for item in items):
        raise ConfigError(
            f"{where} has lists of numbers: pass --problem-type regression to predict them, or multi_label_classification if they "
            "are labels."
        )
    return PROBLEMS[
        "multi_label_classification"
    ], f"{where} has a list of labels in every row: several can be right at once."


def _of_numbers(column: LabelColumn) -> tuple[Problem, str | None]:
    where = f"'{column.name}' of {column.source}"
    values = [float(cell) for cell in column.cells]
    if any(not value.is_integer() for value in values):
        return PROBLEMS["regression"], (
            f"{where} holds numbers that are not whole, from {min(values):g} to {max(values):g}: a number is predicted "
            "(regression). --problem-type single_label_classification takes them as names."
        )
    counts = Counter(values)
    numbered = set(counts) == set(range(len(counts)))
    if len(counts) > _MANY and not (numbered and min(counts.values()) > 1):
        raise ConfigError(
            f"{where} has {len(counts)} different whole numbers: pass --problem-type regression to predict a number, or "
            "single_label_classification if each is the name of a label."
        )
    note = f"{where} has the whole numbers from 0 to {len(counts) - 1}: each is a label. --problem-type regression predicts a number."
    return PROBLEMS["single_label_classification"], note if len(counts) > _MANY else None


def _refuse_strays(column: LabelColumn) -> None:
    """Raise :class:`ConfigError` for some cells without a number in a column of numbers that are not whole."""
    strays = [row for row, cell in enumerate(column.cells) if not _is_number(cell)]
    if 2 * len(strays) < len(column.cells) and any(_is_fraction(cell) for cell in column.cells):
        raise ConfigError(
            f"'{column.name}' of {column.source} holds numbers that are not whole, but {column.where(strays[0])} has "
            f"'{column.cells[strays[0]][:60]}': correct it to predict a number, or pass --problem-type single_label_classification if "
            "all of them are names."
        )


def _of_parts(column: LabelColumn) -> tuple[Problem, str | None] | None:
    """Return several labels for cells like ``a|b`` whose parts all occur in other cells too; None if there are none."""
    different = set(column.cells)
    for mark in SEPARATORS:
        divided = [cell for cell in sorted(different) if mark in cell]
        parts = Counter(part for cell in different for part in set(split_cell(cell) if mark in cell else [cell]))
        if not divided or any(parts[part] < 2 for cell in divided for part in split_cell(cell)):
            continue
        shown = f"'{column.name}' of {column.source} has cells like '{divided[0][:60]}'"
        if mark == "|":
            return PROBLEMS["multi_label_classification"], (
                f"{shown}, whose parts are labels of other rows: several can be right at once. --problem-type "
                "single_label_classification takes such cells as names."
            )
        raise ConfigError(
            f"{shown}, whose parts are labels of other rows: pass --problem-type multi_label_classification if several can be "
            "right at once, or single_label_classification to take such cells as names."
        )
    return None


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def _is_fraction(text: str) -> bool:
    return _is_number(text) and not float(text).is_integer()
