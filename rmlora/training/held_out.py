"""Choosing what is split off the training data for validation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import numpy as np

__all__ = ["choose_held_out", "complete_splits"]

_Data = TypeVar("_Data")


def complete_splits(
    train: _Data,
    sources: Mapping[str, str | None],
    read: Callable[[str], _Data],
    split_off: Callable[[_Data], tuple[_Data, _Data]],
) -> dict[str, _Data]:
    """Return ``train``, ``validation`` and, if there is test data, ``test``.

    Args:
        train: the training data.
        sources: split → file or dataset; None if it is not given.
        read: reads the others.
        split_off: divides the training data if no validation data is given, into what is left and what is held out.
    """
    splits = {name: read(source) for name in ("validation", "test") if (source := sources.get(name)) is not None}
    if "validation" not in splits:
        train, held_out = split_off(train)
        splits = {"validation": held_out, **splits}
    return {"train": train, **splits}


def choose_held_out(keys: Collection[str], fraction: float, seed: int) -> set[str]:
    """Return about ``fraction`` of ``keys``, at least one and not all.

    Args:
        keys: two or more; those that occur twice count once, so that what is equal ends up on one side.
        fraction: share to split off.
        seed: what the choice depends on, besides the keys.
    """
    different = sorted(set(keys))
    count = min(max(1, round(fraction * len(different))), len(different) - 1)
    return {different[index] for index in np.random.default_rng(seed).permutation(len(different))[:count]}
