"""Comparing two methods over cells (task × training-set size), paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from benchmarks.quality.store import RunStore
from benchmarks.quality.study import RunSpec

__all__ = ["Comparison", "Difference", "compare", "sign_test"]

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % points of Student's t with 1, 2, … degrees of freedom."""


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another in one cell."""

    task: str
    size: int
    values: tuple[float, ...]
    """Difference of test accuracy for each seed that both have run, in percentage points."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.values)

    @property
    def half_width(self) -> float:
        """Half the 95 % confidence interval of the mean; infinite with a single seed."""
        return _half_width(self.values)

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` if the interval excludes zero, else ``tie``."""
        if self.mean > self.half_width:
            return "better"
        return "worse" if self.mean < -self.half_width else "tie"


@dataclass(frozen=True)
class Comparison:
    """One method against another over all cells that both have run."""

    method: str
    against: str
    cells: tuple[Difference, ...]

    @property
    def mean(self) -> float:
        """Mean of the cells' means, in percentage points."""
        return fmean(cell.mean for cell in self.cells)

    @property
    def half_width(self) -> float:
        """Half the 95 % confidence interval of the mean over cells, which are taken as independent."""
        return _half_width([cell.mean for cell in self.cells])

    @property
    def ahead(self) -> int:
        """Cells with a positive mean difference."""
        return sum(cell.mean > 0 for cell in self.cells)

    @property
    def behind(self) -> int:
        """Cells with a negative mean difference."""
        return sum(cell.mean < 0 for cell in self.cells)

    def count(self, verdict: str) -> int:
        """Return the number of cells with a verdict."""
        return sum(cell.verdict == verdict for cell in self.cells)


def _half_width(values: Sequence[float]) -> float:
    """Return half the 95 % confidence interval of a mean; infinite for a single value."""
    freedom = len(values) - 1
    if freedom < 1:
        return math.inf
    t = _T_975[freedom - 1] if freedom <= len(_T_975) else 1.96 + 2.4 / freedom
    return t * stdev(values) / math.sqrt(len(values))


def compare(
    store: RunStore, method: str, against: str, chosen: Mapping[tuple[str, int, str], float], seeds: Sequence[int]
) -> Comparison:
    """Return the paired differences of test accuracy of ``method`` over ``against``.

    Args:
        store: the runs.
        method: whose differences are counted as positive.
        against: the other.
        chosen: (task, size, method) → learning rate at which the method is compared.
        seeds: those to look at; a seed that one of the two lacks is left out.
    """
    cells = []
    for task, size, name in chosen:
        if name != method or (task, size, against) not in chosen:
            continue
        pairs = [
            [store.get(RunSpec(task, size, other, chosen[task, size, other], seed)) for other in (method, against)]
            for seed in seeds
        ]
        values = tuple(
            100 * (first["test_score"] - second["test_score"])
            for first, second in pairs
            if first is not None and second is not None
        )
        if values:
            cells.append(Difference(task, size, values))
    return Comparison(method, against, tuple(cells))


def sign_test(ahead: int, behind: int) -> float:
    """Return the two-sided probability of a split at least this uneven if both signs were equally likely."""
    count = ahead + behind
    tail = sum(math.comb(count, k) for k in range(min(ahead, behind) + 1)) / 2**count
    return min(1.0, 2 * tail)
