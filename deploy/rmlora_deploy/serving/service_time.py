"""Learns how long rows take to compute, from the batches that ran."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ServiceTimes", "length_bucket"]

_KEPT = 0.8
"""Share of the old estimate that remains after a batch."""
_JUMP = 2.0
"""A batch counts as at most this many times what was expected, so that one that was held up changes little."""
_HALF_LIFE = 60.0
"""Seconds after which an estimate that nothing confirmed is halfway back to the best that was measured."""


def length_bucket(length: int) -> int:
    """Return the bucket of rows with ``length`` tokens: 0 for rows without tokens, else half an octave wide."""
    if length <= 1:
        return 0
    octave = length.bit_length() - 1
    return 2 * octave + (2 * length >= 3 << octave)


@dataclass
class _Estimate:
    """What is known of one bucket."""

    seconds: float
    """Per row, lately."""
    best: float
    """The lowest ``seconds`` so far: what the machine can do when nothing else keeps it busy."""
    updated: float
    busy: bool
    """True once a batch was measured while others waited."""


class ServiceTimes:
    """Seconds that a row takes, by its length; safe to use from any thread.

    What a row takes depends on how full its batch is, and under load batches are full. So once a batch ran while others
    waited, only such batches count. Before, all count, which overestimates.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[int, _Estimate] = {}

    def learn(self, lengths: Sequence[int], seconds: float, *, busy: bool) -> None:
        """Take a batch into account.

        Args:
            lengths: of its rows. Each is taken to have cost the same, since rows are padded to the longest.
            seconds: that it took.
            busy: True if it was full, or others waited when it began.
        """
        per_row, now = seconds / len(lengths), self._clock()
        with self._lock:
            for bucket in {length_bucket(length) for length in lengths}:
                known = self._known.get(bucket)
                if known is None or (busy and not known.busy):
                    self._known[bucket] = _Estimate(per_row, per_row, now, busy)
                elif busy or not known.busy:
                    new = min(per_row, _JUMP * known.seconds)
                    known.seconds = _KEPT * _faded(known, now) + (1 - _KEPT) * new
                    known.best, known.updated = min(known.best, known.seconds), now

    def per_row(self, bucket: int) -> float:
        """Return the seconds that a row of ``bucket`` takes; 0 if nothing is known yet.

        A bucket that has not been seen is estimated from the nearest one that has, in proportion to the length.
        """
        with self._lock:
            return self._per_row(bucket, self._clock())

    def of(self, rows: Mapping[int, int]) -> float:
        """Return the seconds that rows take one after another; ``rows`` is bucket → number of rows."""
        with self._lock:
            now = self._clock()
            return sum(number * self._per_row(bucket, now) for bucket, number in rows.items() if number)

    def _per_row(self, bucket: int, now: float) -> float:
        known = self._known.get(bucket)
        if known is not None:
            return _faded(known, now)
        if not self._known:
            return 0.0
        nearest = min(self._known, key=lambda other: (abs(other - bucket), -other))
        return _faded(self._known[nearest], now) * math.pow(2, (bucket - nearest) / 2)


def _faded(known: _Estimate, now: float) -> float:
    """Return an estimate as it counts now: a slow spell is not held against the machine for ever."""
    return known.best + (known.seconds - known.best) * math.pow(0.5, (now - known.updated) / _HALF_LIFE)
