"""Divide examples into a test set, a validation set and training sets of which the small ones are part of the large.

Every part has the shares of the labels that the whole has, as far as whole groups allow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.realdata.example import Example
from rmlora.errors import InputError

__all__ = ["Split", "groups_of", "split"]


class Split(NamedTuple):
    """Indices of examples; no index, and no group, is in two parts."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split(examples: Sequence[Example], *, seed: int, train: int | None = None, validation: int, test: int) -> Split:
    """Return which examples train, which validate and which test.

    The test set depends on ``seed`` and ``test`` alone and the validation set not on ``train``, so that training sets of
    several sizes are compared on the same examples. The training set of one size begins with those of all smaller
    sizes. It has every label left for training once it is as large as the number of labels. A label with two groups or
    more is in the test set if that has a group for each label, and is left for training if testing and validation take
    less than half of the groups.

    Whole groups are put aside for testing and validation; what the last one holds beyond the wanted number is not used.
    A group larger than a quarter of that number only trains: it would be too much of the part. Numbers as labels are
    balanced by their nearest whole number, and lists by whether they are empty.

    Args:
        examples: from a reader of :data:`benchmarks.realdata.DATASETS`.
        seed: decides everything.
        train: number of training examples; all that are left if None.
        validation: number of validation examples.
        test: number of test examples.

    Raises:
        InputError: there are not enough examples, or not enough groups to put aside.
    """
    draw = np.random.default_rng(seed)
    groups = groups_of(examples)
    left = [groups[i] for i in _balanced([_stratum(examples[members[0]]) for members in groups], draw)]
    tested = _take(left, test, "test")
    validated = _take(left, validation, "validation")
    rest = [index for members in left for index in members]
    ordered = [rest[i] for i in _balanced([_stratum(examples[index]) for index in rest], draw)]
    if train is not None and train > len(ordered):
        raise InputError(
            f"{train} examples are wanted for training and {len(ordered)} are left beside {test} for testing and "
            f"{validation} for validation: ask for fewer."
        )
    return Split(ordered[:train], validated, tested)


def groups_of(examples: Sequence[Example]) -> list[list[int]]:
    """Return the indices of each group in the order of first appearance; an example without a group is one by itself."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[index if example.group is None else example.group].append(index)
    return list(groups.values())


def _take(groups: list[list[int]], wanted: int, part: str) -> list[int]:
    """Remove the first groups that hold ``wanted`` examples from ``groups`` and return that many of them."""
    largest = max(1, wanted // 4)
    taken: list[int] = []
    passed: list[list[int]] = []
    for position, members in enumerate(groups):
        if len(taken) >= wanted:
            passed += groups[position:]
            break
        if len(members) > largest:
            passed.append(members)
        else:
            taken += members
    if len(taken) < wanted:
        raise InputError(
            f"{wanted} examples are wanted for {part} and {len(taken)} are in groups of at most {largest}: ask for fewer."
        )
    groups[:] = passed
    return taken[:wanted]


def _balanced(strata: Sequence[Hashable], draw: np.random.Generator) -> list[int]:
    """Return a random order whose every beginning holds the strata in about the shares of the whole, first one of each."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index in draw.permutation(len(strata)):
        members[strata[index]].append(int(index))
    progress = {index: rank / len(own) for own in members.values() for rank, index in enumerate(own)}
    return sorted(progress, key=progress.__getitem__)


def _stratum(example: Example) -> Any:
    if isinstance(example.label, float):
        return round(example.label)
    return example.label == "[]" if example.label.startswith("[") else example.label
