"""Makes ``Retry-After`` true: every client that is refused gets a time of its own, at which there is room for it.

If all refused clients came back after the same second, most would be refused again. So the times are spread by the work
that their requests bring, and a client that comes back at its time is let in before new ones are. A client is recognized
by its request: the same bytes to the same path. Nobody knows who will come back, so there is room for everybody. Once the
server has nothing to do, the overload is over, and the next times begin anew.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

__all__ = ["MAX_WAIT", "RetrySlots"]

MAX_WAIT = 300
"""Longest ``Retry-After`` in seconds."""
_SHARE = 0.7
"""Share of the server's time that is promised to clients that come back."""
_EARLY, _LATE = 0.5, 30.0
"""Seconds that a client may come before and after its time."""
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
        self._slots: deque[tuple[float, int]] = deque()
        """Time and ticket of every slot, in the order in which they were given."""
        self._open: dict[int, tuple[float, ...]] = {}
        """Ticket → times that it was given and has not used. Tuples of numbers cost the garbage collector nothing."""
        self._count = 0

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
        self._next = min(start + work / _SHARE, now + MAX_WAIT)
        if ticket is not None and self._count < _MAX_SLOTS:
            self._slots.append((now + wait, ticket))
            self._open[ticket] = (*self._open.get(ticket, ()), now + wait)
            self._count += 1
        return wait

    def redeem(self, ticket: int | None) -> bool:
        """Return True if the request of ``ticket`` was refused before and has come back at its time."""
        now = self._clock()
        self._expire(now)
        times = self._open.get(ticket) if ticket is not None else None
        if ticket is None or not times or times[0] > now + _EARLY:
            return False
        self._use(ticket)
        return True

    def begin_anew(self) -> None:
        """Promise the server's time from now on, whatever has been promised before."""
        self._next = 0.0

    def __len__(self) -> int:
        """Return the number of clients that may come back."""
        return self._count

    def _expire(self, now: float) -> None:
        while self._slots and self._slots[0][0] + _LATE < now:
            when, ticket = self._slots.popleft()
            if when in self._open.get(ticket, ()):  # otherwise it was used
                self._use(ticket)

    def _use(self, ticket: int) -> None:
        self._count -= 1
        _, *later = self._open.pop(ticket)
        if later:
            self._open[ticket] = tuple(later)
