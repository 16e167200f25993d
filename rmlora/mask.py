"""Which rank directions are masked in a step: a pure function of (seed, step, module name).

There is no random generator and no state, so all replicas draw the same masks, and so does a resumed run. Each (module,
side, direction) gets a 64-bit key from a counter-based hash of seed and step. The ``active_rank`` directions with the
smallest keys are active and the others masked: a uniform draw without replacement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Side", "masked_directions", "masked_directions_of_many"]

Side = Literal["A", "B", "AB"]
"""The factor that a mask applies to; ``AB`` if both factors of a module share it."""

IntArray = npt.NDArray[np.int64]
_KeyArray = npt.NDArray[Any]
"""uint64 of any shape; numpy's stubs lose the type in mixed arithmetic."""


def masked_directions(*, seed: int, step: int, module: str, side: Side, rank: int, active_rank: int) -> IntArray:
    """Return the ``rank - active_rank`` masked directions of one factor in ``step``, in ascending order.

    Step 0 has no mask, as in the authors' code: the result is empty.
    """
    names = [(module, side)]
    rows = masked_directions_of_many(seed=seed, step=step, names=names, rank=rank, active_rank=active_rank)
    return np.asarray(rows[0], dtype=np.int64)


def masked_directions_of_many(
    *, seed: int, step: int, names: Sequence[tuple[str, Side]], rank: int, active_rank: int
) -> IntArray:
    """Return the masked directions of many factors of equal rank, ``[factors, rank - active_rank]``.

    Row ``i`` equals :func:`masked_directions` for ``names[i]``.
    """
    if step == 0:
        return np.empty((len(names), 0), dtype=np.int64)
    # Three 64-bit words stand for (seed, module, side), the step and the direction; two rounds mix them.
    base = np.array([_name_key(seed, module, side) for module, side in names], dtype=np.uint64)
    step_key = _mix(np.array([step], dtype=np.uint64))
    keys = _mix(_mix(base ^ step_key)[:, None] + np.arange(rank, dtype=np.uint64))
    order = np.argsort(keys, axis=1, kind="stable")
    return np.sort(order[:, active_rank:], axis=1).astype(np.int64)


@lru_cache(maxsize=65536)
def _name_key(seed: int, module: str, side: str) -> int:
    digest = hashlib.blake2b(f"{seed}|{module}|{side}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _mix(value: _KeyArray) -> _KeyArray:
    """SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): one increment and the finalizer, modulo 2⁶⁴."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> np.uint64(31)))
