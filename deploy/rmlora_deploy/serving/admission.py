"""Decides what is accepted: no more than can be answered in time, and when to come back otherwise.

With a time limit of T seconds for requests, at most 0.6 T of work may wait in all, and a new request is accepted as long
as it would wait at most 0.4 T. The turns of a heavy request's rows are spread over at most 0.3 T. So the last row of
everything accepted is computed after at most 0.9 T; the rest is the margin for errors of the estimates.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rmlora_deploy.serving.errors import BusyError, TooLargeError
from rmlora_deploy.serving.retry_slots import RetrySlots
from rmlora_deploy.serving.service_time import ServiceTimes
from rmlora_deploy.serving.waiting_rows import Row

__all__ = ["Admission", "Load", "buckets_of"]

_TOTAL, _NEW, _SPREAD = 0.6, 0.4, 0.3
"""Shares of the time limit; see above."""
_LIGHT_SECONDS = 0.1
"""Work of a request that is not spread over time."""
_PACE = 0.5
"""Share of the server's time in which the rows of all heavy requests have their turns; they also get what is left over."""
_RETURNING_ROWS = 1.5
"""Times ``max_queue`` of rows that may wait when a refused client comes back at its time."""
_KEPT = 0.95
"""Share of the old mean work of a request that remains after each one."""


class Load(NamedTuple):
    """What waits or is being computed."""

    rows: int
    """Rows that wait."""
    light: float
    """Seconds of work that a new row has to wait for, if all workers do it."""
    paced: float
    """Seconds of work of heavy requests, most of which a new row passes."""


class Admission:
    """Bounds the work that waits; not safe to use from several threads at once.

    Args:
        max_queue: rows that may wait.
        timeout: seconds within which a request must be answered.
        workers: batches computed at the same time.
    """

    def __init__(self, *, max_queue: int, timeout: float, workers: int) -> None:
        self._max_queue, self._timeout, self.workers = max_queue, timeout, workers
        self.times = ServiceTimes()
        self.slots = RetrySlots()
        self.refused = 0
        """Requests refused so far."""
        self._mean_work = 0.0
        """Of a request, in seconds."""
        self._paced_until = 0.0
        """The last turn that was given to a row of a heavy request."""

    def check(self, rows: int, load: Load, *, ticket: int | None = None, returning: bool = False) -> bool:
        """Return True if the request is one that was refused and has come back at its time.

        Args:
            rows: of the request, as far as they are known.
            load: at the moment.
            ticket: identifies the request; see :class:`RetrySlots`.
            returning: True if an earlier check of the same request said so.

        Raises:
            BusyError: there is no room for a request.
        """
        returning = returning or (len(self.slots) > 0 and self.slots.redeem(ticket))
        allowed = int(self._max_queue * _RETURNING_ROWS) if returning else self._max_queue
        total = (load.light + load.paced) / self.workers
        if load.rows + rows > allowed:
            reason = f"The queue is full: {load.rows} rows are waiting and at most {self._max_queue} may."
            excess = load.rows + rows - self._max_queue
            self._refuse(reason, total * min(1.0, excess / max(1, load.rows)), self._mean_work, ticket)
        wait = min(total, load.light / (self.workers * (1 - _PACE)))
        late = wait - self._timeout * (_TOTAL if returning else _NEW)
        if max(late, total - _TOTAL * self._timeout) > 0:
            reason = f"The server is busy: what waits takes about {total:.2g} s, too much to answer within "
            reason += f"{self._timeout:g} s."
            earliest = max(wait - _NEW * self._timeout, total - _TOTAL * self._timeout)
            self._refuse(reason, earliest, self._mean_work, ticket)
        return returning

    def admit(self, rows: Sequence[Row], load: Load, *, returning: bool) -> list[float]:
        """Accept a request, and return for each of its rows when it has its turn (``time.monotonic``).

        Raises:
            BusyError: there is no room for it.
            TooLargeError: there never is.
        """
        self.check(len(rows), Load(load.rows, 0.0, 0.0), returning=returning)
        costs = [self.times.per_row(row.bucket) for row in rows]
        own, limit = sum(costs), _TOTAL * self._timeout * self.workers
        if own > limit:
            raise TooLargeError(
                f"This request takes about {own / self.workers:.0f} s to compute, and the server accepts at most "
                f"{limit / self.workers:.0f} s for one: send fewer or shorter inputs at once (--timeout)."
            )
        over = load.light + load.paced + own - limit
        if over > 0:
            reason = f"The server is busy: with this request, what waits would take about {(limit + over) / self.workers:.2g}"
            self._refuse(f"{reason} s, too much to answer within {self._timeout:g} s.", over / self.workers, own, None)
        self._mean_work = _KEPT * self._mean_work + (1 - _KEPT) * own if self._mean_work else own
        return self._turns(rows, costs)

    def _turns(self, rows: Sequence[Row], costs: Sequence[float]) -> list[float]:
        now, before, turns = time.monotonic(), 0.0, list[float]()
        for row, cost in zip(rows, costs, strict=True):
            if before < _LIGHT_SECONDS:
                turns.append(row.arrived)
            else:
                latest = now + _SPREAD * self._timeout
                turns.append(min(max(now, self._paced_until), latest))
                self._paced_until = min(turns[-1] + cost / (_PACE * self.workers), latest)
            before += cost
        return turns

    def _refuse(self, reason: str, earliest: float, work: float, ticket: int | None) -> None:
        self.refused += 1
        wait = self.slots.give(ticket, work / self.workers, earliest)
        raise BusyError(f"{reason} Try again in {wait} s.", wait)


def buckets_of(rows: Sequence[Row]) -> Counter[int]:
    """Return how many rows each bucket of lengths has."""
    return Counter(row.bucket for row in rows)
