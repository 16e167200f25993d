"""How much of an update is lost when the merged weight is rounded to the checkpoint's type.

    loss = ‖cast(W + Δ) − (W + Δ)‖_F / ‖Δ‖_F

bfloat16 keeps 8 bits of a weight, so an update much smaller than the weight is partly rounded away
(1.5 % of ‖Δ‖ at ‖Δ‖/‖W‖ = 0.11). Sums run over blocks, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LOSS_WARNING", "ModuleSurvival", "SurvivalMeter"]

LOSS_WARNING = 0.05
"""Share of ``‖Δ‖`` lost above which a merge warns."""

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True)
class ModuleSurvival:
    """What became of one module's update."""

    module: str
    loss: float
    """Rounding error over the update's norm; 0 keeps all, 1 is as bad as not merging."""
    relative_size: float
    """``‖Δ‖ / ‖W‖``: small updates lose more."""


class SurvivalMeter:
    """Adds up the three norms of one module, block by block."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._error = self._delta = self._weight = 0.0

    def add(self, weight: AnyArray, delta: AnyArray, exact: AnyArray, cast: AnyArray) -> None:
        """Count one block: base weight, update, their sum before the cast, and after it."""
        self._error += _square_sum(cast.astype(exact.dtype) - exact)
        self._delta += _square_sum(delta)
        self._weight += _square_sum(weight)

    def result(self) -> ModuleSurvival:
        """Return the ratios; an update of zeros loses nothing."""
        return ModuleSurvival(
            module=self.module,
            loss=math.sqrt(self._error / self._delta) if self._delta else 0.0,
            relative_size=math.sqrt(self._delta / self._weight) if self._weight else 0.0,
        )


def _square_sum(block: AnyArray) -> float:
    return float(np.square(block, dtype=np.float64).sum())
