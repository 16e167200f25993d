"""Loading labeled data: choosing the columns, leaving out empty rows, making targets and splitting off validation data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.errors import InputError, some_of
from rmlora.scoring import ProblemType
from rmlora.tasks import Task
from rmlora.text_pair import InputForm, TextPair, form_of
from rmlora.training.empty_rows import empty_cells, explain_empty
from rmlora.training.input_columns import check_same_form, find_column, input_columns, read_inputs, usual_names
from rmlora.training.label_column import LabelColumn
from rmlora.training.label_values import label_names
from rmlora.training.problem import Problem
from rmlora.training.problem_choice import choose_problem
from rmlora.training.sources import open_table
from rmlora.training.table import Reading
from rmlora.wording import counted

__all__ = ["Columns", "LabeledData", "Splits", "load_inputs", "load_split", "load_splits", "stratified"]

_LABEL_NAMES = ("label", "labels", "class", "category", "target", "intent", "topic")


@dataclass(frozen=True)
class Columns:
    """Column names that the user chose; None looks for the usual names."""

    inputs: str | None = None
    label: str | None = None
    pair: str | None = None
    """Of the second text of a pair."""

    @property
    def chosen(self) -> tuple[str | None, str | None]:
        """The columns of the inputs."""
        return self.inputs, self.pair

    @property
    def names(self) -> list[str]:
        """All that the user chose, in lower case."""
        return [name.lower() for name in (self.inputs, self.pair, self.label) if name]


@dataclass(frozen=True)
class LabeledData:
    """One split: inputs and label names, row by row."""

    inputs: list[Any]
    """Texts, or images as PIL images, paths or encoded bytes."""
    column: LabelColumn
    """Of the labels, row by row."""
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read and what was not used."""

    @property
    def labels(self) -> list[str]:
        """What the label column says, row by row."""
        return self.column.cells


@dataclass(frozen=True)
class Splits:
    """The data of a run: for each split its inputs and, row by row, targets as :meth:`Problem.encode` returns them."""

    problem: Problem
    """What the targets are."""
    labels: tuple[str, ...]
    """A name for each output."""
    train: tuple[list[Any], list[Any]]
    validation: tuple[list[Any], list[Any]]
    test: tuple[list[Any], list[Any]] | None
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read, what was not used, and labels without examples."""

    def by_name(self) -> dict[str, tuple[list[Any], list[Any]]]:
        """Return ``train``, ``validation`` and, if there is test data, ``test``."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}


def load_splits(
    task: Task,
    train: str,
    validation: str | None,
    test: str | None,
    *,
    columns: Columns,
    validation_fraction: float,
    seed: int,
    labels: Sequence[str] | None = None,
    reading: Reading | None = None,
    problem_type: ProblemType | None = None,
) -> Splits:
    """Load all splits, make targets of the labels, and split off validation data if none is given.

    The split depends on ``seed`` only, keeps each label's share if rows have one, and puts all copies of a text on the same
    side.

    Args:
        task: of the model.
        train: training data.
        validation: validation data; None splits it off.
        test: test data, if there is any.
        columns: names of the columns.
        validation_fraction: share of the training data that is split off.
        seed: of the split.
        labels: names in the order of the head's outputs; the data may name them or number them from 0. None takes those in
            the training data.
        reading: how the user wants the files read.
        problem_type: what the label column holds; None decides by the training data.

    Raises:
        InputError: data is missing, unreadable, empty or inconsistent.
        ConfigError: the data has a label that ``labels`` lacks, or its labels can mean more than one thing.
    """
    form: InputForm | None = None

    def load(source: str) -> LabeledData:
        data = load_split(task, source, columns, reading=reading or Reading(), several=True)
        if task.inputs.takes_pairs:
            check_same_form(data.inputs, form, source, owner="the training data")
        return data

    def encode(data: LabeledData) -> tuple[list[Any], list[Any]]:
        return data.inputs, problem.encode(data.column, order, given=labels is not None)

    training = load(train)
    form = form_of(training.inputs)
    problem, understood = choose_problem(problem_type, training.column, labels)
    order = problem.order(training.column, labels)
    notes = [*training.notes, *([understood] if understood else [])]
    rows = encode(training)
    if validation is None:
        rows, held_out = _split_off(rows, problem.strata(rows[1]), validation_fraction, order, seed, train)
    else:
        data = load(validation)
        held_out = encode(data)
        notes += data.notes
    tested = None
    if test is not None:
        data = load(test)
        tested = encode(data)
        notes += data.notes
    splits = Splits(problem, order, rows, held_out, tested)
    for name, split in splits.by_name().items():
        notes += _without_examples(name, problem.present(split[1], order), order)
    return replace(splits, notes=tuple(dict.fromkeys(notes)))


def load_split(
    task: Task,
    source: str,
    columns: Columns,
    *,
    reading: Reading | None = None,
    several: bool = False,
    form: InputForm | None = None,
) -> LabeledData:
    """Load one file, image folder or hub dataset (``name`` or ``name:split``).

    Args:
        task: of the model.
        source: where the data is.
        columns: names of the columns.
        reading: how the user wants the file read, to train on it; None to measure a finished adapter.
        several: a row may have a list of labels, which becomes JSON.
        form: what the rows must be, single texts or pairs; None takes pairs where two columns are those of a pair, and to measure
            a finished adapter only where none of them could be meant alone.

    Raises:
        InputError: it does not exist, cannot be parsed, is empty, lacks the columns, or has empty cells.
    """
    table = open_table(source, {*usual_names(task.inputs), *_LABEL_NAMES, *columns.names}, reading)
    input_names = input_columns(
        table, task.inputs, columns.chosen, source, form, guess=reading is not None or form == "pair"
    )
    if Path(source).is_dir() and columns.label is None and set(table.columns) <= set(input_names):
        raise InputError(
            f"The images in {source} have no labels: put those of each label into a subfolder of their own, of which two or more "
            "must have images."
        )
    label_column = find_column(table, columns.label, _LABEL_NAMES, "--label-column", source)
    if table.rows == 0:
        raise InputError(f"{source} holds no rows: there is nothing to train on.")
    rows = range(table.rows)
    declared = table.class_names.get(label_column)
    labels = label_names(
        table.columns[label_column], declared, source=source, numbers=table.numbers(rows), unit=table.unit,
        several=several,
    )  # fmt: skip
    empty = {
        **empty_cells(task.inputs, table, input_names, source),
        label_column: [row for row in rows if labels[row] is None],
    }
    notes = list(table.notes)
    if len(input_names) == 2 and columns.pair is None:
        notes.append(
            f"The rows of {source} are pairs of '{input_names[0]}' and '{input_names[1]}': name one with --text-column for single texts."
        )
    if any(empty.values()):
        notes.append(explain_empty(empty, table, source, reading))
    left_out = {row for missing in empty.values() for row in missing}
    kept = [row for row in rows if row not in left_out]
    if not kept:
        raise InputError(
            f"{source} has no row with {'' if len(input_names) > 1 else 'both '}{', '.join(repr(name) for name in input_names)} and '{label_column}': check the columns."
        )
    if others := [name for name in table.columns if name and name not in (*input_names, label_column)]:
        notes.append(f"Columns of {source} that are not used: {some_of(others)}.")
    return LabeledData(
        read_inputs(table, input_names, kept, task.inputs, source, form),
        LabelColumn(
            label_column,
            source,
            [label for row in kept if (label := labels[row]) is not None],
            table.numbers(kept),
            table.unit,
            declared,
        ),
        tuple(notes),
    )


def load_inputs(
    task: Task, source: str, columns: Columns, *, form: InputForm | None = None, all_rows: bool = False
) -> list[Any]:
    """Load the inputs of a file, image folder or hub dataset, which needs no labels.

    Args:
        task: of the model.
        source: where the data is.
        columns: names of the columns.
        form: what the rows must be; None takes pairs where two columns can be nothing else.
        all_rows: refuse empty rows; False leaves them out.

    Raises:
        InputError: it does not exist, cannot be parsed, lacks the column, or holds no input.
    """
    table = open_table(source, {*usual_names(task.inputs), *columns.names}, None)
    names = input_columns(table, task.inputs, columns.chosen, source, form, guess=form == "pair")
    empty = empty_cells(task.inputs, table, names, source)
    if all_rows and any(empty.values()):
        explain_empty(empty, table, source, None)
    left_out = {row for rows in empty.values() for row in rows}
    rows = [row for row in range(table.rows) if row not in left_out]
    if not rows:
        raise InputError(f"{source} has no row with a '{names[0]}': check the column.")
    return read_inputs(table, names, rows, task.inputs, source, form)


def _without_examples(split: str, present: Collection[int], labels: Sequence[str]) -> list[str]:
    """Return a sentence about the labels that a split lacks; none if it has all."""
    missing = [label for number, label in enumerate(labels) if number not in present]
    if not missing:
        return []
    effect = (
        "the adapter cannot learn to predict it" if split == "train" else "how well it is predicted is not measured"
    )
    if len(missing) > 1:
        effect = effect.replace("predict it", "predict them").replace("it is", "they are")
    names = f"label '{missing[0]}'" if len(missing) == 1 else f"labels {some_of(missing)}"
    return [f"The {split} data has no examples of the {names}: {effect}."]


def _split_off(
    rows: tuple[list[Any], list[Any]],
    strata: list[int],
    fraction: float,
    labels: Sequence[str],
    seed: int,
    source: str,
) -> tuple[tuple[list[Any], list[Any]], tuple[list[Any], list[Any]]]:
    inputs, targets = rows
    chosen = stratified(inputs, strata, fraction, labels, np.random.default_rng(seed), source)
    rest = sorted(set(range(len(inputs))) - set(chosen))
    return (
        ([inputs[i] for i in rest], [targets[i] for i in rest]),
        ([inputs[i] for i in chosen], [targets[i] for i in chosen]),
    )


def stratified(
    inputs: list[Any], indices: list[int], fraction: float, labels: Sequence[str], rng: np.random.Generator, source: str
) -> list[int]:
    """Return the rows of a validation split that takes ``fraction`` of every label; equal texts stay together.

    A label with a single distinct example stays in the training data.
    """
    groups: dict[int, dict[Any, list[int]]] = {}
    for number, (value, label) in enumerate(zip(inputs, indices, strict=True)):
        key = value if isinstance(value, (str, TextPair)) else number
        groups.setdefault(label, {}).setdefault(key, []).append(number)
    distinct = {label: len(members) for label, members in groups.items()}
    if sum(distinct.values()) == 1:
        raise InputError(f"{source} has only one distinct example: add examples, or give --validation.")
    single = [label for label, count in distinct.items() if count == 1]
    if 2 * len(single) > len(distinct):
        raise InputError(
            f"{source} has only one distinct example of {counted(len(single), 'label')} of {len(distinct)} (such as "
            f"'{labels[single[0]]}'): check --label-column, add examples, or give --validation."
        )
    chosen: list[int] = []
    for label in sorted(set(distinct) - set(single)):
        rows = list(groups[label].values())
        count = max(1, round(fraction * len(rows)))
        chosen += [i for g in rng.permutation(len(rows))[: min(count, len(rows) - 1)] for i in rows[g]]
    return sorted(chosen)
