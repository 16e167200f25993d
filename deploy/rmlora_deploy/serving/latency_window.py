"""The recent past of a server's latency, in arrays that are cheap to write at every request and to read each second."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LatencyWindow"]

_POINTS = (50, 90, 99)


class LatencyWindow:
    """Keeps when requests ended and the seconds they took; the caller sees to it that threads take turns.

    Args:
        kept: requests; older ones are overwritten.
    """

    def __init__(self, kept: int) -> None:
        self._when = np.full(kept, -np.inf)
        self._took = np.zeros(kept)
        self._count = 0

    def add(self, when: float, seconds: float) -> None:
        """Keep a request that ended at ``when``."""
        place = self._count % len(self._when)
        self._when[place], self._took[place] = when, seconds
        self._count += 1

    def copy(self) -> LatencyWindow:
        """Return what is kept now, to be read while more is added."""
        copy = LatencyWindow(0)
        copy._when, copy._took, copy._count = self._when.copy(), self._took.copy(), self._count
        return copy

    def latencies(self, since: float) -> npt.NDArray[np.float64]:
        """Return the seconds of the requests that ended since then."""
        return self._took[self._when >= since]

    def series(self, now: float, *, step: float, steps: int) -> dict[str, Any]:
        """Return the number of requests and percentiles (ms) of the last ``steps`` whole intervals, the oldest first.

        Intervals are fixed on the clock: as time goes on they move through the series and do not change. None stands
        for percentiles of an interval without requests, and for numbers that go back further than what is kept.
        """
        last = int(now // step)
        place = np.floor(self._when / step) - (last - steps)
        inside = (place >= 0) & (place < steps)
        order = np.lexsort((self._took[inside], place[inside]))
        place, took = place[inside][order], self._took[inside][order] * 1e3
        starts = np.searchsorted(place, np.arange(steps + 1))
        counts = np.diff(starts)
        full = self._count >= len(self._when)
        known = int(self._when.min() // step) + 1 - (last - steps) if full else 0
        made: dict[str, Any] = {
            "step": step,
            "requests": [None if number < known else int(count) for number, count in enumerate(counts)],
        }
        for point in _POINTS:
            nearest = starts[:-1] + np.maximum(np.ceil(counts * (point / 100)).astype(int) - 1, 0)
            made[f"p{point}"] = [
                round(float(took[index]), 2) if count and number >= known else None
                for number, (index, count) in enumerate(zip(nearest, counts, strict=True))
            ]
        return made
