"""The score of graded pairs of sentences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

__all__ = ["rank_correlation"]


def rank_correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return Spearman's correlation; equal values share the mean of their ranks. 0 if one side is constant."""
    sides = [np.asarray(side) for side in (first, second)]
    return 0.0 if any(np.ptp(side) == 0 for side in sides) else float(spearmanr(*sides).statistic)
