"""Decides what is accepted: no more than can be answered in time, and when to come back otherwise.

With a time limit of T seconds for requests, a new request is accepted as long as it would wait at most 0.4 T, and at most
0.6 T of work may wait in all. The turns of a heavy request's rows are spread over at most 0.5 T, behind those of other heavy
requests. So a light row is computed after at most 0.9 T. The workers of heavy requests get 12 % of the time beside busy ones
(:mod:`rmlora_deploy.serving.queue`), so what is spread over 0.5 T at a pace of 17 % is computed after at most 0.72 T. The
rest is the margin for errors of the estimates.
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

_TOTAL, _NEW, _SPREAD = 0.6, 0.4, 0.5
"""Shares of the time limit; see above."""
_LIGHT_SECONDS = 0.1
"""Work of a request above which it is heavy, and its rows are spread over time."""
_PACE = 0.17
"""Share of the server's time that heavy requests are accepted for. They get less beside busy workers, which the margin
covers, and whatever light ones leave over."""
_EXTRA_ROWS = 1.5
"""Times ``max_queue`` of rows that may wait when a refused client comes back at its time, or when several requests were
checked before any of them was queued."""
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
        allowed = int(self._max_queue * _EXTRA_ROWS) if returning else self._max_queue
        total = (load.light + load.paced) / self.workers
        if not load.rows and not total:
            self.slots.begin_anew()
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

    def admit(
        self, rows: Sequence[Row], load: Load, *, checked: bool = False, ticket: int | None = None
    ) -> list[float]:
        """Accept a request, and return for each of its rows when it has its turn (``time.monotonic``).

        Args:
            rows: of the request.
            load: at the moment.
            checked: True if :meth:`check` has let it pass.
            ticket: identifies the request.

        Raises:
            BusyError: there is no room for it.
            TooLargeError: there never is.
        """
        self.check(len(rows), Load(load.rows, 0.0, 0.0), ticket=ticket, returning=checked)
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
            self._refuse(
                f"{reason} s, too much to answer within {self._timeout:g} s.", over / self.workers, own, ticket
            )
        turns = self._turns(rows, costs, own, load, ticket)
        self._mean_work = _KEPT * self._mean_work + (1 - _KEPT) * own if self._mean_work else own
        return turns

    def _turns(
        self, rows: Sequence[Row], costs: Sequence[float], own: float, load: Load, ticket: int | None
    ) -> list[float]:
        if own <= _LIGHT_SECONDS or len(rows) == 1:
            return [row.arrived for row in rows]
        pace, longest = _PACE * self.workers, _SPREAD * self._timeout
        before, span = load.paced / pace, own / pace
        if before + span > longest:
            if load.paced:
                reason = f"The server is busy with {load.paced / self.workers:.2g} s of work for other large requests."
                self._refuse(reason, min(load.paced / self.workers, before + span - longest), own, ticket)
            span = longest
        turn, turns = time.monotonic() + before, list[float]()
        for cost in costs:
            turns.append(turn)
            turn += span * cost / own
        return turns

    def _refuse(self, reason: str, earliest: float, work: float, ticket: int | None) -> None:
        self.refused += 1
        wait = self.slots.give(ticket, work / self.workers, earliest)
        raise BusyError(f"{reason} Try again in {wait} s.", wait)


def buckets_of(rows: Sequence[Row]) -> Counter[int]:
    """Return how many rows each bucket of lengths has."""
    return Counter(row.bucket for row in rows)
