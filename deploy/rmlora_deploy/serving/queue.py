"""The request queue: batches rows of different requests and different adapters, if they are of similar length.

The row that has waited longest is always in the next batch, so no row starves. Rows of similar length join it, so that
little of the batch is padding. A batch starts when it is full or when its first row has waited long enough; while the
model is busy, batches fill up on their own.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy.typing as npt

from rmlora.inputs import Arrays
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName
from rmlora_deploy.serving.batch_selection import select_batch
from rmlora_deploy.serving.errors import BusyError, StoppingError

__all__ = ["RequestQueue", "Row"]

_NICENESS = 5
"""How much lower the priority of computing threads is than that of the others."""

Answer: TypeAlias = npt.NDArray[Any]
Run: TypeAlias = "Callable[[Sequence[Row]], Sequence[Answer]]"


@dataclass(eq=False)
class Row:
    """One row of a request: what the model is to compute."""

    arrays: Arrays
    """Inputs without the batch axis."""
    adapter: AdapterName | None
    """None for the base, or for a merged bundle."""
    batch_key: Hashable
    """Only rows with the same key are computed together."""
    length: int = 1
    """Tokens; rows of a batch are padded to the longest."""
    arrived: float = field(default_factory=time.monotonic)


class _Request:
    """The rows of one request; several workers may answer them at the same time."""

    def __init__(self, rows: int) -> None:
        self.future: Future[list[Answer]] = Future()
        self._answers: dict[int, Answer] = {}
        self._rows = rows
        self._lock = threading.Lock()

    def answer(self, number: int, answer: Answer) -> None:
        """Store the answer to one row; the last one completes the request."""
        with self._lock:
            self._answers[number] = answer
            complete = len(self._answers) == self._rows
        if complete:
            with suppress(InvalidStateError):  # it was cancelled, or another of its rows has failed
                self.future.set_result([self._answers[index] for index in range(self._rows)])

    def fail(self, error: Exception) -> None:
        """End the request with ``error``, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True)
class _WaitingRow:
    """A row in the queue, and the request it belongs to."""

    row: Row
    request: _Request
    number: int
    """Index of the row in its request."""


class RequestQueue:
    """Queues the rows of one model and computes them in batches; safe to use from any thread.

    Args:
        run: computes a batch, one answer for each row.
        max_batch: rows of a batch.
        max_wait: maximum time in seconds that a row waits for others to batch with.
        max_queue: rows that may wait.
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
        workers: int = 1,
        observe: Callable[[Sequence[Row], float], None] | None = None,
    ) -> None:
        self._run, self._observe = run, observe
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._waiting_by_key: dict[Hashable, deque[_WaitingRow]] = {}
        """Batch key → its waiting rows, the oldest first; a key without rows is removed."""
        self._count = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_row = 0.0
        self._workers = [threading.Thread(target=self._work, name="batch", daemon=True) for _ in range(workers)]
        for worker in self._workers:
            worker.start()

    def check(self, rows: int) -> None:
        """Raise what :meth:`submit` would raise for this many rows now."""
        if self._stopping:
            raise StoppingError("The server is shutting down: send the request to another one.")
        waiting = self._count
        if waiting + rows > self._max_queue:
            wait = max(1, math.ceil(waiting * self._seconds_per_row / len(self._workers)))
            raise BusyError(
                f"The queue is full: {waiting} rows are waiting and at most {self._max_queue} may. Try again in {wait} s.",
                wait,
            )

    def submit(self, rows: Sequence[Row]) -> Future[list[Answer]]:
        """Queue the rows of one request. Canceling the future removes those that are still waiting.

        Raises:
            BusyError: the queue has no room for them.
            StoppingError: :meth:`close` was called.
        """
        request = _Request(len(rows))
        with self._changed:
            self.check(len(rows))
            for number, row in enumerate(rows):
                self._waiting_by_key.setdefault(row.batch_key, deque()).append(_WaitingRow(row, request, number))
            self._count += len(rows)
            self._changed.notify()
        request.future.add_done_callback(partial(self._remove_canceled, request))
        return request.future

    def _remove_canceled(self, request: _Request, future: Future[list[Answer]]) -> None:
        """Remove the waiting rows of a canceled request, which makes room for others."""
        if not future.cancelled():
            return
        with self._changed:
            for key, waiting in list(self._waiting_by_key.items()):
                kept = deque(item for item in waiting if item.request is not request)
                self._count -= len(waiting) - len(kept)
                if kept:
                    self._waiting_by_key[key] = kept
                else:
                    del self._waiting_by_key[key]

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._count

    def close(self, timeout: float | None = None) -> bool:
        """Accept no more rows, compute those that wait, and return True if that took at most ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        end = None if timeout is None else time.monotonic() + timeout
        for worker in self._workers:
            worker.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(worker.is_alive() for worker in self._workers)

    def _work(self) -> None:
        _lower_priority()
        while batch := self._take_batch():
            active = [item for item in batch if not item.request.future.done()]
            if active:
                self._compute(active)

    def _take_batch(self) -> list[_WaitingRow]:
        """Wait for a batch and remove it from the queue; an empty one means that there will be no more."""
        with self._changed:
            while True:
                while not self._count and not self._stopping:
                    self._changed.wait()
                if not self._count:
                    return []
                key = min(self._waiting_by_key, key=lambda name: self._waiting_by_key[name][0].row.arrived)
                waiting = self._waiting_by_key[key]
                left = waiting[0].row.arrived + self._max_wait - time.monotonic()
                indices = select_batch([item.row.length for item in waiting], max_rows=self._max_batch)
                if len(indices) == self._max_batch or left <= 0 or self._stopping:
                    batch = [waiting[index] for index in indices]
                    for index in reversed(indices):
                        del waiting[index]
                    if not waiting:
                        del self._waiting_by_key[key]
                    self._count -= len(batch)
                    if self._count:
                        self._changed.notify()  # one call may bring rows for several workers
                    return batch
                self._changed.wait(left)

    def _compute(self, batch: Sequence[_WaitingRow]) -> None:
        started = time.monotonic()
        rows = [item.row for item in batch]
        try:
            answers = self._run(rows)
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} rows got {len(answers)} answers")
        except Exception as error:  # noqa: BLE001 - any error belongs to a request and must not end this thread
            if len(batch) == 1:
                batch[0].request.fail(error)
                return
            for item in batch:  # one row is at fault: compute them one by one, so that the others get their answers
                if not item.request.future.done():
                    self._compute([item])
            return
        seconds = time.monotonic() - started
        self._seconds_per_row = 0.9 * self._seconds_per_row + 0.1 * seconds / len(batch)
        if self._observe is not None:
            self._observe(rows, seconds)
        for item, answer in zip(batch, answers, strict=True):
            item.request.answer(item.number, answer)


def _lower_priority() -> None:
    """Lower this thread's priority, so that threads which read and answer requests get a core at once.

    Those threads need a core only briefly, but they hold the interpreter's lock while they wait for one, and every
    worker that is ready for its next batch then waits for them.
    """
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
