"""Makes ``Retry-After`` true: every client that is refused gets a time of its own, at which there is room for it.

If all refused clients came back after the same second, most would be refused again. So the times are spread by the work
that their requests bring, and a client that comes back at its time is let in before new ones are. A client is recognized
by its request: the same bytes to the same path. Clients that never come back keep no room: the share of those that do is
learned, and the times move closer together.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable

__all__ = ["MAX_WAIT", "RetrySlots"]

MAX_WAIT = 300
"""Longest ``Retry-After`` in seconds."""
_SHARE = 0.7
"""Share of the server's time that is promised to clients that come back."""
_EARLY, _LATE = 0.5, 10.0
"""Seconds that a client may come before and after its time."""
_KEPT_BACK, _KEPT_GONE, _LEAST = 0.99, 0.9995, 0.3
"""Shares of the old estimate of how many come back that remain after one that does, and after one that does not; and the
least estimate, since most clients may start to come back at any time."""
_MAX_SLOTS = 100_000


class RetrySlots:
    """Times at which refused clients may come back; not safe to use from several threads at once.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        """Until when the server's time is promised."""
        self._returning = 1.0
        """Share of refused clients that come back."""
        self._slots: deque[tuple[int, float]] = deque()
        """Ticket and time, in the order in which they were given."""
        self._open: Counter[int] = Counter()
        """Ticket → times given for it that nobody has used."""

    def give(self, ticket: int | None, work: float, earliest: float) -> int:
        """Return the seconds after which a refused client should come back.

        Args:
            ticket: identifies its request; None if it cannot be recognized.
            work: seconds of the server's time that the request takes.
            earliest: seconds until there is room for anything.
        """
        now = self._clock()
        self._expire(now)
        start = max(self._next, now + earliest)
        wait = min(MAX_WAIT, max(1, math.ceil(start - now)))
        self._next = min(start + work * self._returning / _SHARE, now + MAX_WAIT)
        if ticket is not None and len(self._slots) < _MAX_SLOTS:
            self._slots.append((ticket, now + wait))
            self._open[ticket] += 1
        return wait

    def redeem(self, ticket: int | None) -> bool:
        """Return True if the request of ``ticket`` was refused before and has come back at its time."""
        now = self._clock()
        self._expire(now)
        if ticket is None or not self._open[ticket]:
            return False
        for index, (other, when) in enumerate(self._slots):
            if when > now + _EARLY:
                break
            if other == ticket:
                del self._slots[index]
                self._use(ticket)
                self._returning = _KEPT_BACK * self._returning + 1 - _KEPT_BACK
                return True
        return False

    def __len__(self) -> int:
        """Return the number of clients that may come back."""
        return len(self._slots)

    def _expire(self, now: float) -> None:
        while self._slots and self._slots[0][1] + _LATE < now:
            self._use(self._slots.popleft()[0])
            self._returning = max(_LEAST, _KEPT_GONE * self._returning)

    def _use(self, ticket: int) -> None:
        self._open[ticket] -= 1
        if not self._open[ticket]:
            del self._open[ticket]
