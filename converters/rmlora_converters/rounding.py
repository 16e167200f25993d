"""The rounding loss of a merge: how much of an update is lost when the merged weight is cast to the base's type.

    loss = ‖cast(W + Δ) − (W + Δ)‖_F / ‖Δ‖_F

bfloat16 keeps 8 bits of a weight, so an update much smaller than the weight is partly rounded away
(1.5 % of ‖Δ‖ at ‖Δ‖/‖W‖ = 0.11). The norms are summed over blocks, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import AdapterError
from rmlora.tensors import DTYPES, FLOATING
from rmlora_converters.block_sum import SquareSums, overflow_error

__all__ = ["LOSS_WARNING", "ModuleRounding", "RoundingMeter", "RoundingReport", "checked_cast", "collect_roundings"]

LOSS_WARNING = 0.05
"""A merge warns if more than this share of ``‖Δ‖`` is lost."""

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True)
class ModuleRounding:
    """What rounding did to the update of one module."""

    module: str
    loss: float
    """Norm of the rounding error over that of the update: 0 loses nothing, 1 is as bad as not merging."""
    relative_size: float
    """``‖Δ‖ / ‖W‖``: small updates lose more."""


@dataclass(frozen=True)
class RoundingReport:
    """What a merge did to the weights. Each kind of merge adds fields of its own."""

    modules: tuple[ModuleRounding, ...]
    """One entry per adapted module, largest loss first."""
    replaced: tuple[str, ...]
    """Parameters of the base that the adapter's modules_to_save replaced."""
    nbytes: int
    """Bytes of all weights written."""
    dropped: tuple[str, ...]
    """Adapted modules on which no output depends; their updates were left out."""

    @property
    def worst_loss(self) -> float:
        """The largest share of an update lost in the cast."""
        return max((item.loss for item in self.modules), default=0.0)


class RoundingMeter:
    """Adds up the rounding loss of one module over all its blocks."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._error = self._delta = self._weight = 0.0

    def add(self, sums: SquareSums) -> None:
        """Add what :func:`rmlora_converters.block_sum.add_update` returned for some rows of the module."""
        self._error += sums.error
        self._delta += sums.delta
        self._weight += sums.weight

    def result(self) -> ModuleRounding:
        """Return the ratios for all blocks so far; an update of zeros loses nothing."""
        return ModuleRounding(
            module=self.module,
            loss=math.sqrt(self._error / self._delta) if self._delta else 0.0,
            relative_size=math.sqrt(self._delta / self._weight) if self._weight else 0.0,
        )


def checked_cast(values: AnyArray, dtype: np.dtype[Any], name: str) -> AnyArray:
    """Return ``values`` as ``dtype``.

    Raises:
        AdapterError: a value is not finite in that type. The message contains ``name``.
    """
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if any(DTYPES[kind] == dtype for kind in FLOATING) and not np.isfinite(cast.astype(np.float32)).all():
        raise overflow_error(name, dtype)
    return cast


def collect_roundings(modules: Iterable[str], meters: Iterable[RoundingMeter]) -> tuple[ModuleRounding, ...]:
    """Return the results of all ``meters``, largest loss first.

    Raises:
        AdapterError: one of ``modules`` has no meter, so it was not merged.
    """
    results = sorted((meter.result() for meter in meters), key=lambda item: -item.loss)
    if missing := sorted(set(modules) - {item.module for item in results}):
        raise AdapterError(f"The update of '{missing[0]}' was not merged: please report this as a bug.")
    return tuple(results)
