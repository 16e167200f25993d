"""The request queue: batches rows of different requests and different adapters, if they are of similar length.

Rows have their turn in the order in which they arrived, so none starves. Heavy requests have workers of their own
(:mod:`rmlora_deploy.serving.waiting_rows`). Rows of similar length join the one whose turn it is, so that little of the
batch is padding. A batch starts when it is full or when its first row has waited long enough; while the model is busy,
batches fill up on their own.

How much may wait is bounded by the time that it will take, so that what is accepted is answered before its deadline
(:mod:`rmlora_deploy.serving.admission`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from rmlora_deploy.serving.admission import Admission, Load, buckets_of
from rmlora_deploy.serving.errors import BrokenError, LateError, StoppingError
from rmlora_deploy.serving.supervised import Supervised
from rmlora_deploy.serving.waiting_rows import Answer, Request, Row, RowList, WaitingRow

__all__ = ["RequestQueue", "Row"]

Run: TypeAlias = "Callable[[Sequence[Row]], Sequence[Answer]]"

_PACED_SECONDS = 0.03
"""Time that a batch of a heavy request's rows may take, unless one row takes longer."""
_HEAVY_NICENESS = 9
"""How much lower the priority of the workers that compute the rows of heavy requests is: they get an eighth of the time
beside the other workers, and the whole machine if there is nothing else to do. The other workers have the priority and
the policy of any program: with a lower one they get a third of a machine that they share, and under SCHED_BATCH they wait for
the heavy ones."""
_IDLE_SECONDS = 1.0
"""After this time without light rows, what heavy ones took shows how fast the machine is."""
_STUCK_SECONDS = 300.0
"""A batch that runs longer than this, and than twice the time limit of requests, will not end."""
_log = logging.getLogger("rmlora.serve")
_BROKEN = "Computing failed again and again, and this server gave up: send the request to another one."


@dataclass(frozen=True)
class _Batch:
    """What a worker computes."""

    items: list[WaitingRow]
    since: float
    """When the worker was free for it."""
    seconds: float
    """That it is expected to take."""
    busy: bool
    """True if it was full, or others waited when it began."""
    heavy: bool
    """True if it is of heavy requests, which have workers of their own."""


class RequestQueue:
    """Queues the rows of one model and computes them in batches; safe to use from any thread.

    Args:
        run: computes a batch, one answer for each row.
        max_batch: rows of a batch.
        max_wait: maximum time in seconds that a row waits for others to batch with.
        max_queue: rows that may wait.
        timeout: seconds within which a request must be answered; no more is accepted than that allows.
        workers: batches computed at the same time.
        observe: called after every batch with its rows and the seconds it took.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        timeout: float = 30.0,
        workers: int = 1,
        observe: Callable[[Sequence[Row], float], None] | None = None,
    ) -> None:
        self._run, self._observe = run, observe
        self._max_batch, self._max_wait, self._timeout = max_batch, max_wait, timeout
        self.admission = Admission(max_queue=max_queue, timeout=timeout, workers=workers)
        self._light, self._paced = RowList(), RowList()
        self._open: set[Request] = set()
        """Requests that are not answered yet."""
        self._running: dict[int, _Batch] = {}
        """Thread → what it computes."""
        self._local = threading.local()
        """``idle_since``: when this worker ended its last batch, unless it had to wait for work since then."""
        self._light_arrived = -_IDLE_SECONDS
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._stopping = False
        self._has_paced = threading.Condition(self._lock)
        supervised = partial(Supervised, on_failure=self._after_failure, on_loss=self._after_loss)
        self._workers = supervised(self._compute_next, count=workers, niceness=0)
        self._heavy = supervised(partial(self._compute_next, heavy=True), count=workers, niceness=_HEAVY_NICENESS)
        self._workers.start()
        self._heavy.start()

    # -- accepting ---------------------------------------------------------------------------------------------------

    def check(self, rows: int = 1, *, ticket: int | None = None, returning: bool = False) -> bool:
        """Raise what :meth:`submit` would raise for this many rows now; return True if a refused client has come back.

        Args:
            rows: of the request.
            ticket: identifies the request, so that it is recognized when it comes back.
            returning: True if an earlier check of the same request said so.
        """
        with self._changed:
            self._check_open()
            return self.admission.check(rows, self._load(), ticket=ticket, returning=returning)

    def _check_open(self) -> None:
        if self._stopping:
            raise StoppingError("The server is shutting down: send the request to another one.")
        if not (self._workers.alive and self._heavy.alive):
            raise BrokenError(_BROKEN)

    def _load(self) -> Load:
        now, times = time.monotonic(), self.admission.times
        running = sum(max(0.0, batch.seconds - (now - batch.since)) for batch in self._running.values())
        return Load(self.waiting, running + times.of(self._light.buckets), times.of(self._paced.buckets))

    def submit(
        self,
        rows: Sequence[Row],
        *,
        deadline: float | None = None,
        checked: bool = False,
        ticket: int | None = None,
    ) -> Future[list[Answer]]:
        """Queue the rows of one request. Canceling the future removes those that are still waiting.

        Args:
            rows: of the request.
            deadline: when the answer is due (``time.monotonic``); rows that still wait then are not computed.
            checked: True if :meth:`check` has let the request pass.
            ticket: identifies the request, so that it is recognized when it comes back.

        Raises:
            BusyError: the queue has no room for them.
            TooLargeError: they would take too long even if nothing else waited.
            StoppingError: :meth:`close` was called.
            BrokenError: there is no worker left.
        """
        request = Request(len(rows), deadline)
        with self._changed:
            self._check_open()
            turns = self.admission.admit(rows, self._load(), checked=checked, ticket=ticket)
            self._open.add(request)
            for number, (row, turn) in enumerate(zip(rows, turns, strict=True)):
                paced = turn > row.arrived
                (self._paced if paced else self._light).add(WaitingRow(row, request, number, turn, paced))
            if turns[-1] <= rows[-1].arrived:
                self._light_arrived = time.monotonic()
            self._changed.notify()
            if len(self._paced):
                self._has_paced.notify()
        request.future.add_done_callback(partial(self._forget, request))
        return request.future

    def _forget(self, request: Request, future: Future[list[Answer]]) -> None:
        """Forget a request that has ended; if it was canceled or failed, remove its waiting rows."""
        with self._changed:
            self._open.discard(request)
            if future.cancelled() or future.exception() is not None:
                self._light.remove(request)
                self._paced.remove(request)

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._light) + len(self._paced)

    @property
    def seconds(self) -> float:
        """Estimated time until everything that was accepted is computed."""
        with self._changed:
            load = self._load()
        return (load.light + load.paced) / self.admission.workers

    @property
    def failures(self) -> int:
        """How often a worker failed; each time it was started again, unless there were too many in a row."""
        return self._workers.failures + self._heavy.failures

    @property
    def alive(self) -> int:
        """Workers that were not given up, without those for heavy requests."""
        return self._workers.alive

    def problem(self) -> str | None:
        """Say why this process should be replaced; None if all is well."""
        now, limit = time.monotonic(), max(_STUCK_SECONDS, 2 * self._timeout)
        if min(self._workers.alive, self._heavy.alive) < self.admission.workers:
            return _BROKEN
        if any(now - batch.since > limit for batch in list(self._running.values())):
            return f"A batch has been running for more than {limit:g} s: restart this server."
        return None

    def close(self, timeout: float | None = None) -> bool:
        """Accept no more rows, compute those that wait, and return True if that took at most ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            self._has_paced.notify_all()
        end = None if timeout is None else time.monotonic() + timeout
        done = self._workers.join(timeout)
        return self._heavy.join(None if end is None else max(0.0, end - time.monotonic())) and done

    # -- computing, in the workers' threads --------------------------------------------------------------------------

    def _compute_next(self, *, heavy: bool = False) -> bool:
        """Compute a batch, of heavy requests if ``heavy``; return False if there will be no more."""
        thread = threading.get_ident()
        try:
            batch = self._take_batch(heavy)
            if batch is None:
                return False
            active = [item for item in batch.items if not self._has_ended(item.request)]
            if active:
                self._compute(active, batch)
            self._local.idle_since = time.monotonic()
            return True
        except BaseException as error:
            for item in self._running[thread].items if thread in self._running else ():
                item.request.fail(_failure(error))
            raise
        finally:
            self._running.pop(thread, None)

    def _take_batch(self, heavy: bool = False) -> _Batch | None:
        """Wait for a batch and remove it from the queue; None means that there will be no more."""
        with self._changed:
            while True:
                rows, condition = (self._paced, self._has_paced) if heavy else (self._light, self._changed)
                first = rows.first()
                if first is None:
                    if self._stopping:
                        return None
                    condition.wait()
                    self._local.idle_since = None
                    continue
                items = rows.select(first, self._max_rows(first))
                left = first.row.arrived + self._max_wait - time.monotonic()
                full = len(items) == self._max_batch
                if full or left <= 0 or self._stopping or first.paced:
                    rows.take(items)
                    busy = full or self.waiting > 0
                    seconds = self.admission.times.of(buckets_of([item.row for item in items]))
                    since = getattr(self._local, "idle_since", None) or time.monotonic()
                    batch = _Batch(items, since, seconds, busy, heavy)
                    self._running[threading.get_ident()] = batch
                    if len(rows):
                        condition.notify()  # one call may bring rows for several workers
                    return batch
                condition.wait(left)
                self._local.idle_since = None

    def _max_rows(self, first: WaitingRow) -> int:
        """Return the number of rows that a batch with ``first`` may have."""
        per_row = self.admission.times.per_row(first.row.bucket) if first.paced else 0.0
        return self._max_batch if not per_row else max(1, min(self._max_batch, int(_PACED_SECONDS / per_row)))

    def _has_ended(self, request: Request) -> bool:
        """Return True if nobody waits for the answer any more; a request whose deadline has passed ends here."""
        if request.deadline is not None and time.monotonic() > request.deadline and not request.future.done():
            request.fail(LateError(f"There was no answer within {self._timeout:g} s: try again later."))
        return request.future.done()

    def _compute(self, items: Sequence[WaitingRow], batch: _Batch) -> None:
        started = time.monotonic()
        rows = [item.row for item in items]
        try:
            answers = self._run(rows)
            if len(answers) != len(items):
                raise RuntimeError(f"{len(items)} rows got {len(answers)} answers")
        except Exception as error:  # noqa: BLE001 - any error belongs to a request and must not end this thread
            if len(items) == 1:
                items[0].request.fail(error)
                return
            for item in items:  # one row is at fault: compute them one by one, so that the others get their answers
                if not self._has_ended(item.request):
                    self._compute([item], batch)
            return
        seconds = time.monotonic() - started
        self._report(rows, seconds)
        for item, answer in zip(items, answers, strict=True):
            item.request.answer(item.number, answer)
        whole = time.monotonic() - (batch.since if len(items) == len(batch.items) else started)
        if not batch.heavy or self._light_arrived < batch.since:  # else its low priority made it slow
            self.admission.times.learn([row.length for row in rows], whole, busy=batch.busy)

    def _report(self, rows: Sequence[Row], seconds: float) -> None:
        if self._observe is None:
            return
        try:
            self._observe(rows, seconds)
        except Exception as error:  # noqa: BLE001 - the answers are there, whatever happens to the figures
            _log.error("a batch could not be counted", exc_info=error)

    # -- failures ----------------------------------------------------------------------------------------------------

    def _after_failure(self, in_a_row: int) -> None:
        """Give up what waits if a worker fails again at once, since something that waits must be the reason."""
        if in_a_row > 1:
            self._fail_all(RuntimeError("the workers failed again and again"))

    def _after_loss(self) -> None:
        if not (self._workers.alive and self._heavy.alive):
            self._fail_all(BrokenError(_BROKEN))

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            self._light, self._paced = RowList(), RowList()
            requests = list(self._open)
        for request in requests:
            request.fail(error)


def _failure(error: BaseException) -> RuntimeError:
    """Return an error for the requests of a worker that failed; the original may be one that would end the server."""
    failure = RuntimeError("the worker failed")
    failure.__cause__ = error
    return failure
