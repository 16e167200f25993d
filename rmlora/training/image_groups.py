"""Reading images with labels, of which those with the same label belong together (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rmlora.errors import InputError, some_of
from rmlora.tasks import Task
from rmlora.training.data import Columns, load_split, stratified
from rmlora.training.held_out import complete_splits
from rmlora.training.table import Reading
from rmlora.wording import counted

__all__ = ["ImageGroups", "load_image_groups", "read_image_groups", "single_images"]


@dataclass(frozen=True)
class ImageGroups:
    """One split."""

    source: str
    images: tuple[Any, ...]
    labels: tuple[str, ...]
    """Of every image."""
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read and what was not used."""

    def only(self, rows: Sequence[int]) -> ImageGroups:
        """Return these rows, without notes."""
        return ImageGroups(
            self.source, tuple(self.images[row] for row in rows), tuple(self.labels[row] for row in rows)
        )

    @property
    def numbers(self) -> list[int]:
        """A number for the label of every image, the same for the same label."""
        order = {label: number for number, label in enumerate(sorted(set(self.labels)))}
        return [order[label] for label in self.labels]


def load_image_groups(
    task: Task,
    sources: Mapping[str, str | None],
    columns: Columns,
    reading: Reading,
    *,
    validation_fraction: float,
    seed: int,
) -> dict[str, ImageGroups]:
    """Load all splits; if no validation data is given, split off a share of every label.

    The splits may have different labels: vectors are learned, not labels.

    Args:
        task: of the model.
        sources: split → folder, file or dataset; None if it is not given.
        columns: names of the columns.
        reading: how the user wants files read.
        validation_fraction: share of the training data that is split off.
        seed: of the split.

    Raises:
        InputError: data is missing, unreadable or empty, or its labels leave nothing to learn or to measure.
    """

    def split_off(data: ImageGroups) -> tuple[ImageGroups, ImageGroups]:
        names = sorted(set(data.labels))
        rows = range(len(data.images))
        chosen = set(
            stratified(list(rows), data.numbers, validation_fraction, names, np.random.default_rng(seed), data.source)
        )
        train = data.only([row for row in rows if row not in chosen])
        return replace(train, notes=data.notes), data.only(sorted(chosen))

    train = read_image_groups(task, str(sources["train"]), columns, reading)
    splits = complete_splits(
        train, sources, lambda source: read_image_groups(task, source, columns, reading), split_off
    )
    for name, data in splits.items():
        _check(data, name, split_off=name == "validation" and sources.get(name) is None)
    return splits


def read_image_groups(task: Task, source: str, columns: Columns, reading: Reading | None = None) -> ImageGroups:
    """Read one folder with a subfolder for each label, one file, or one hub dataset.

    Args:
        task: of the model.
        source: where the data is.
        columns: names of the columns.
        reading: how the user wants the file read; None if the caller offers no choice.

    Raises:
        InputError: it cannot be read, lacks the columns, or no image has another with the same label and one with another.
    """
    data = load_split(task, source, columns, reading=reading)
    groups = ImageGroups(source, tuple(data.inputs), tuple(data.labels), data.notes)
    _check(groups, "given")
    return groups


def _check(data: ImageGroups, split: str, *, split_off: bool = False) -> None:
    """Raise :class:`InputError` unless some label has several images, and there is another label."""
    counts = Counter(data.labels)
    advice = "raise --validation-fraction or give --validation" if split_off else "add images, or check --label-column"
    where = f"The {split} data of {data.source}" if split != "given" else data.source
    if len(counts) < 2:
        raise InputError(
            f"{where} has only the label '{next(iter(counts))}', so there is no image that another could be told from: {advice}."
        )
    if max(counts.values()) < 2:
        raise InputError(
            f"{where} has one image of each label ({some_of(list(counts))}), so none has another that belongs to it: {advice}."
        )


def single_images(data: ImageGroups, split: str) -> list[str]:
    """Return a sentence about labels with one image in a split; none if all have several."""
    single = [label for label, count in Counter(data.labels).items() if count == 1]
    if not single:
        return []
    effect = "no other can be drawn to" if split == "train" else "has no other to find, and counts as wrong"
    has = "has" if len(single) == 1 else "have"
    return [
        f"{counted(len(single), 'label')} of the {split} data {has} a single image ({some_of(single)}), which {effect}."
    ]
