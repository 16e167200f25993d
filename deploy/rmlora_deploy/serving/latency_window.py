"""The latencies of recent requests, in arrays that are cheap to write at every request and to read every second."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LatencyWindow"]

_PERCENTILES = (50, 90, 99)


class LatencyWindow:
    """Stores when requests ended and how many seconds they took; not safe to use from several threads at once.

    Args:
        capacity: number of requests; older ones are overwritten.
    """

    def __init__(self, capacity: int) -> None:
        self._ended = np.full(capacity, -np.inf)
        self._seconds = np.zeros(capacity)
        self._count = 0

    def add(self, ended: float, seconds: float) -> None:
        """Store a request that ended at ``ended`` and took ``seconds``."""
        index = self._count % len(self._ended)
        self._ended[index], self._seconds[index] = ended, seconds
        self._count += 1

    def copy(self) -> LatencyWindow:
        """Return a copy, which can be read while more is added here."""
        copy = LatencyWindow(0)
        copy._ended, copy._seconds, copy._count = self._ended.copy(), self._seconds.copy(), self._count
        return copy

    def latencies(self, since: float) -> npt.NDArray[np.float64]:
        """Return the seconds of the requests that ended at or after ``since``."""
        return self._seconds[self._ended >= since]

    def series(self, now: float, *, step: float, steps: int) -> dict[str, Any]:
        """Return the number of requests and latency percentiles (ms) of the last ``steps`` whole intervals, oldest first.

        Intervals are aligned to the clock, so that as time passes they move through the series without changing. None
        stands for the percentiles of an interval without requests, and for everything older than what is stored.
        """
        last = int(now // step)
        interval = np.floor(self._ended / step) - (last - steps)
        inside = (interval >= 0) & (interval < steps)
        order = np.lexsort((self._seconds[inside], interval[inside]))
        interval, milliseconds = interval[inside][order], self._seconds[inside][order] * 1e3
        starts = np.searchsorted(interval, np.arange(steps + 1))
        counts = np.diff(starts)
        full = self._count >= len(self._ended)
        known = int(self._ended.min() // step) + 1 - (last - steps) if full else 0
        series: dict[str, Any] = {
            "step": step,
            "requests": [None if number < known else int(count) for number, count in enumerate(counts)],
        }
        for percentile in _PERCENTILES:
            nearest = starts[:-1] + np.maximum(np.ceil(counts * (percentile / 100)).astype(int) - 1, 0)
            series[f"p{percentile}"] = [
                round(float(milliseconds[index]), 2) if count and number >= known else None
                for number, (index, count) in enumerate(zip(nearest, counts, strict=True))
            ]
        return series
