"""Choosing what is split off the training data for validation."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

__all__ = ["choose_held_out"]


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
