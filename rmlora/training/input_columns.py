"""Which columns of a table hold its inputs: one, or the two that together are pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rmlora.errors import InputError, some_of
from rmlora.inputs import Inputs
from rmlora.text_pair import InputForm, TextPair, form_of
from rmlora.training.table import Table

__all__ = ["check_same_form", "find_column", "input_columns", "read_inputs", "usual_names"]


def usual_names(inputs: Inputs) -> set[str]:
    """Return the names of columns that are recognized."""
    return {*inputs.column_names, *(name for pair in inputs.pair_columns for name in pair)}


def input_columns(
    table: Table,
    inputs: Inputs,
    chosen: tuple[str | None, str | None],
    source: str,
    form: InputForm | None,
    *,
    guess: bool,
) -> tuple[str, ...]:
    """Return the names of one column, or of two.

    Args:
        table: the data.
        inputs: of the task.
        chosen: names of the first and second column that the user gave.
        source: where the data is.
        form: what the rows must be; None takes pairs where two columns are the two texts of a pair.
        guess: take them even if one of them could be meant alone, as the question in ``question`` and ``sentence``.

    Raises:
        InputError: a column is missing, or it is not clear which are meant.
    """
    flag = f"--{inputs.column_option.replace('_', '-')}"
    first, second = chosen
    if second is not None:
        if first is None:
            raise InputError(f"--pair-column names the second text of a pair: name the first one with {flag}.")
        if first == second:
            raise InputError(f"{flag} and --pair-column both name '{first}': name two columns.")
        if not inputs.takes_pairs:
            raise InputError("--pair-column is for text-classification: leave it out.")
        return (
            find_column(table, first, (), flag, source),
            find_column(table, second, (), "--pair-column", source),
        )
    pair = _recognized_pair(table, inputs) if first is None and form != "text" else None
    if pair is not None and (guess or not any(name.lower() in inputs.column_names for name in pair)):
        return pair
    return (_single(table, inputs, first, flag, source),)


def _recognized_pair(table: Table, inputs: Inputs) -> tuple[str, str] | None:
    """Return the columns of the only pair of known names, if no other column has the name of a text."""
    lower = {name.lower(): name for name in reversed(list(table.columns))}
    pairs = [pair for pair in inputs.pair_columns if all(name in lower for name in pair)]
    texts = {name for name in inputs.column_names if name in lower}
    if len(pairs) != 1 or texts - set(pairs[0]):
        return None
    return lower[pairs[0][0]], lower[pairs[0][1]]


def _single(table: Table, inputs: Inputs, chosen: str | None, flag: str, source: str) -> str:
    lower = [name.lower() for name in table.columns]
    found = [name for name in table.columns if name.lower() in inputs.column_names]
    if chosen is None and inputs.columns_compete and len(found) > 1:
        others = "and the second text of a pair with --pair-column" if inputs.takes_pairs else "or join them into one"
        raise InputError(
            f"{source} has the columns {' and '.join(repr(name) for name in found)}: choose the texts with {flag}, {others}."
        )
    if chosen is None and not found and any(name in lower for pair in inputs.pair_columns for name in pair):
        raise InputError(
            f"It is not clear which columns of {source} hold the texts (it has {some_of(list(table.columns))}): name one with "
            f"{flag}, and the second text of a pair with --pair-column."
        )
    return find_column(table, chosen, inputs.column_names, flag, source)


def find_column(
    table: Table,
    chosen: str | None,
    usual: Sequence[str],
    flag: str,
    source: str,
    *,
    advice: str = "; the first line of a file must name its columns.",
) -> str:
    """Return the chosen column, or the first one with a usual name.

    Args:
        table: the data.
        chosen: name that the user gave.
        usual: names to look for, the best first.
        flag: with which the user names the column.
        source: where the data is.
        advice: end of the error sentence if no column has a usual name.

    Raises:
        InputError: there is none.
    """
    present = list(table.columns)
    if chosen is not None:
        if chosen not in present:
            raise InputError(f"{source} has no column '{chosen}' (it has {some_of(present)}): change {flag}.")
        return chosen
    lower = {name.lower(): name for name in reversed(present)}
    found = [lower[name] for name in usual if name in lower]
    if not found:
        raise InputError(
            f"{source} has none of the columns {', '.join(usual)} (it has {some_of(present)}): pass {flag}{advice}"
        )
    return found[0]


def read_inputs(
    table: Table,
    columns: Sequence[str],
    rows: Sequence[int],
    inputs: Inputs,
    source: str,
    form: InputForm | None = None,
) -> list[Any]:
    """Return the inputs in ``rows``, whose cells are not empty: of two columns, pairs.

    Raises:
        InputError: some rows are pairs and others single texts, or they are not of this ``form``.
    """
    cells = [table.columns[name] for name in columns]
    if len(cells) == 2:
        found: list[Any] = [TextPair(cells[0][row], cells[1][row]) for row in rows]
    else:
        found = [inputs.locate(cells[0][row], source) for row in rows]
    if inputs.takes_pairs:
        for number, value in _of_another_form(found):
            raise InputError(
                f"{table.unit.capitalize()} {table.numbers([rows[number]])[0]} of {source} has {_one(value)} in '{columns[0]}', where "
                "the first one has another form: give single texts or pairs, not both."
            )
        check_same_form(found, form, source)
    return found


def check_same_form(inputs: Sequence[Any], form: InputForm | None, source: str, *, owner: str = "the adapter") -> None:
    """Raise :class:`InputError` unless the data has the form that ``owner`` has; None accepts both."""
    if not inputs or form in (None, form_of(inputs)):
        return
    if form == "pair":
        raise InputError(
            f"{source} holds single texts where {owner} takes pairs: name its two columns with --text-column and --pair-column."
        )
    raise InputError(
        f"{source} holds pairs where {owner} takes single texts: name the column with --text-column alone."
    )


def _of_another_form(found: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    first = isinstance(found[0], TextPair) if found else False
    return ((number, value) for number, value in enumerate(found) if isinstance(value, TextPair) != first)


def _one(value: Any) -> str:
    return "a pair" if isinstance(value, TextPair) else "a single text"
