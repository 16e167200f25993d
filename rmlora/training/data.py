"""Loading labeled data with ``datasets``, choosing the columns, numbering the labels and splitting off validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmlora.errors import InputError, require
from rmlora.readable import check_readable
from rmlora.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Columns", "LabeledData", "Splits", "load_split", "load_splits"]

_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_LABEL_NAMES = ("label", "labels", "class", "category", "target", "intent", "topic")


@dataclass(frozen=True)
class Columns:
    """Column names that the user chose; None looks for the usual names."""

    inputs: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class LabeledData:
    """One split: inputs and label names, row by row."""

    inputs: list[Any]
    """Texts, or images as PIL images, paths or encoded bytes."""
    labels: list[str]
    label_order: tuple[str, ...] | None = None
    """Labels in the order that the dataset declares; None if it declares none."""


@dataclass(frozen=True)
class Splits:
    """The data of a run: for each split its inputs and, row by row, indices into ``labels``."""

    labels: tuple[str, ...]
    train: tuple[list[Any], list[int]]
    validation: tuple[list[Any], list[int]]
    test: tuple[list[Any], list[int]] | None

    def by_name(self) -> dict[str, tuple[list[Any], list[int]]]:
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
) -> Splits:
    """Load all splits, number the labels, and split off validation data if none is given.

    The split depends on ``seed`` only, keeps each label's share, and puts all copies of a text on the same side.

    Raises:
        InputError: data is missing, unreadable, empty or inconsistent.
    """
    training = load_split(task, train, columns)
    labels = training.label_order or tuple(_sorted_labels(training.labels))
    if len(set(training.labels)) < 2:
        raise InputError(f"{train} has only one label ('{training.labels[0]}'): classification needs at least two.")
    index = {label: number for number, label in enumerate(labels)}
    inputs, numbers = training.inputs, [index[label] for label in training.labels]
    if validation is None:
        chosen = _stratified(training.inputs, numbers, validation_fraction, np.random.default_rng(seed))
        held_out = ([inputs[i] for i in chosen], [numbers[i] for i in chosen])
        rest = sorted(set(range(len(inputs))) - set(chosen))
        inputs, numbers = [inputs[i] for i in rest], [numbers[i] for i in rest]
        if not held_out[0]:
            raise InputError(f"{train} is too small to split off validation data: give --validation.")
    else:
        held_out = _encode(load_split(task, validation, columns), index, validation)
    tested = _encode(load_split(task, test, columns), index, test) if test else None
    return Splits(labels, (inputs, numbers), held_out, tested)


def load_split(task: Task, source: str, columns: Columns) -> LabeledData:
    """Load one file, image folder or hub dataset (``name`` or ``name:split``).

    Raises:
        InputError: it does not exist, cannot be parsed, is empty, or lacks the columns.
    """
    require("datasets", "train")
    table = _open(source)
    flag = f"--{task.inputs.column_option.replace('_', '-')}"
    input_column = _column(table, columns.inputs, task.inputs.column_names, flag, source)
    label_column = _column(table, columns.label, _LABEL_NAMES, "--label-column", source)
    if len(table) == 0:
        raise InputError(f"{source} holds no rows: there is nothing to train on.")
    inputs, raw = [task.inputs.locate(value, source) for value in table[input_column][:]], table[label_column][:]
    for row, (value, label) in enumerate(zip(inputs, raw, strict=True)):
        if label is None or label == "" or label != label:
            raise InputError(f"Row {row + 1} of {source} has no '{label_column}': fill it in or remove the row.")
        if task.inputs.is_empty(value):
            raise InputError(f"Row {row + 1} of {source} has no '{input_column}': fill it in or remove the row.")
    feature = table.features[label_column]
    if hasattr(feature, "int2str"):
        return LabeledData(inputs, [feature.int2str(number) for number in raw], tuple(feature.names))
    return LabeledData(inputs, [str(label) for label in raw])


def _open(source: str) -> Dataset:
    import datasets

    datasets.disable_progress_bars()
    path = Path(source)
    check_readable([path])
    try:
        if path.is_dir():
            return datasets.load_dataset("imagefolder", data_dir=str(path), split="train")
        if path.is_file():
            if path.suffix.lower() not in _FORMATS:
                raise InputError(
                    f"{source} is not a csv, tsv, json, jsonl or parquet file: convert it to one of these."
                )
            if path.stat().st_size == 0:
                raise InputError(f"{source} is empty: there is nothing to train on.")
            options = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
            kind = _FORMATS[path.suffix.lower()]
            return datasets.load_dataset(kind, data_files=str(path), split="train", **options)
        if path.suffix or source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise InputError(f"Data not found: {source} does not exist.")
        name, _, split = source.partition(":")
        return datasets.load_dataset(name, split=split or "train")
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise InputError(f"{source} cannot be read as a dataset ({reason}): check its format.") from None


def _column(table: Dataset, chosen: str | None, usual: Sequence[str], flag: str, source: str) -> str:
    present = [str(name) for name in table.column_names]
    if chosen is not None:
        if chosen not in present:
            raise InputError(f"{source} has no column '{chosen}' (it has {', '.join(present)}): change {flag}.")
        return chosen
    lower = {name.lower(): name for name in present}
    for name in usual:
        if name in lower:
            return lower[name]
    raise InputError(f"{source} has none of the columns {', '.join(usual)} (it has {', '.join(present)}): pass {flag}.")


def _sorted_labels(labels: Sequence[str]) -> list[str]:
    distinct = set(labels)
    if all(label.lstrip("-").isdigit() for label in distinct):
        return sorted(distinct, key=int)
    return sorted(distinct)


def _encode(data: LabeledData, index: dict[str, int], source: str) -> tuple[list[Any], list[int]]:
    unknown = sorted(set(data.labels) - set(index))
    if unknown:
        raise InputError(
            f"{source} has the label '{unknown[0]}', which the training data lacks (it has {', '.join(index)}): "
            "check the label column of both."
        )
    return data.inputs, [index[label] for label in data.labels]


def _stratified(inputs: list[Any], labels: list[int], fraction: float, rng: np.random.Generator) -> list[int]:
    """Return the rows of a validation split that takes ``fraction`` of every label; equal texts stay together."""
    groups: dict[tuple[int, Any], list[int]] = {}
    for number, (value, label) in enumerate(zip(inputs, labels, strict=True)):
        groups.setdefault((label, value if isinstance(value, str) else number), []).append(number)
    chosen: list[int] = []
    for label in sorted(set(labels)):
        rows = [members for (group_label, _), members in groups.items() if group_label == label]
        if len(rows) < 2:
            raise InputError(f"A label has only {len(rows)} distinct example: add some or give --validation.")
        count = max(1, round(fraction * len(rows)))
        chosen += [i for g in rng.permutation(len(rows))[:count] for i in rows[g]]
    return sorted(chosen)
