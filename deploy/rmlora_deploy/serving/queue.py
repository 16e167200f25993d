"""Dynamic batching: rows of any requests and any adapters are computed together with others of about their length.

The row that has waited longest is in the next batch, so none starves, and with it are those of about its length, so that
little of the batch is padding. The batch is computed at once if it is full, and else when that row has waited long enough;
while the model is busy, batches fill by themselves.
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

from rmlora_deploy.runtime.outputs import Arrays
from rmlora_deploy.serving.batch_selection import select_batch
from rmlora_deploy.serving.errors import BusyError, StoppingError

__all__ = ["Batcher", "Row"]

_NICENESS = 5
"""By how much the priority of threads that compute is lower than that of the others."""

Answer: TypeAlias = npt.NDArray[Any]
Run: TypeAlias = "Callable[[Sequence[Row]], Sequence[Answer]]"


@dataclass(eq=False)
class Row:
    """One row of a request: what the model is to compute."""

    arrays: Arrays
    """Inputs without the batch axis."""
    adapter: str | None
    batch_key: Hashable
    """Only rows of one lane are computed together."""
    length: int = 1
    """Tokens, where rows of a lane are padded to the longest of a batch."""
    arrived: float = field(default_factory=time.monotonic)


class _Request:
    """The rows of one request on their way; workers may answer several of them at the same time."""

    def __init__(self, rows: int) -> None:
        self.future: Future[list[Answer]] = Future()
        self._answers: dict[int, Answer] = {}
        self._rows = rows
        self._lock = threading.Lock()

    def answer(self, number: int, answer: Answer) -> None:
        """Keep the answer to one row, and hand over all with the last."""
        with self._lock:
            self._answers[number] = answer
            complete = len(self._answers) == self._rows
        if complete:
            with suppress(InvalidStateError):  # it was cancelled, or another of its rows has failed
                self.future.set_result([self._answers[place] for place in range(self._rows)])

    def fail(self, error: Exception) -> None:
        """End the request with ``error``, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True)
class _Waiting:
    """A row in its lane, and whom it belongs to."""

    row: Row
    request: _Request
    number: int


class Batcher:
    """A queue before one model; safe to use from any thread.

    Args:
        run: computes a batch, one answer for each row.
        max_batch: rows of a batch.
        max_wait: seconds that a row waits for company.
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
        self._batches_by_key: dict[Hashable, deque[_Waiting]] = {}
        self._count = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_row = 0.0
        self._workers = [threading.Thread(target=self._work, name="batcher", daemon=True) for _ in range(workers)]
        for worker in self._workers:
            worker.start()

    def check(self, rows: int) -> None:
        """Raise as :meth:`submit` would for so many rows now."""
        if self._stopping:
            raise StoppingError("The server is stopping: ask another one.")
        waiting = self._count
        if waiting + rows > self._max_queue:
            wait = max(1, math.ceil(waiting * self._seconds_per_row / len(self._workers)))
            raise BusyError(f"{waiting} rows wait already, of at most {self._max_queue}: try again in {wait} s.", wait)

    def submit(self, rows: Sequence[Row]) -> Future[list[Answer]]:
        """Queue the rows of one request; canceling the future takes out those that still wait.

        Raises:
            BusyError: the queue has no place for them.
            StoppingError: :meth:`close` was called.
        """
        request = _Request(len(rows))
        with self._changed:
            self.check(len(rows))
            for number, row in enumerate(rows):
                self._batches_by_key.setdefault(row.batch_key, deque()).append(_Waiting(row, request, number))
            self._count += len(rows)
            self._changed.notify()
        request.future.add_done_callback(partial(self._left, request))
        return request.future

    def _left(self, request: _Request, future: Future[list[Answer]]) -> None:
        """Take out the rows of a request that was cancelled: others can have their places."""
        if not future.cancelled():
            return
        with self._changed:
            for key, batch_key in list(self._batches_by_key.items()):
                kept = deque(item for item in batch_key if item.request is not request)
                self._count -= len(batch_key) - len(kept)
                if kept:
                    self._batches_by_key[key] = kept
                else:
                    del self._batches_by_key[key]

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._count

    def close(self, timeout: float | None = None) -> bool:
        """Take no more rows, compute those that wait, and return whether all were done within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        end = None if timeout is None else time.monotonic() + timeout
        for worker in self._workers:
            worker.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(worker.is_alive() for worker in self._workers)

    def _work(self) -> None:
        _give_way()
        while batch := self._take():
            alive = [item for item in batch if not item.request.future.done()]
            if alive:
                self._compute(alive)

    def _take(self) -> list[_Waiting]:
        """Wait for a batch and take it out of its lane; an empty one means that there will be no more."""
        with self._changed:
            while True:
                while not self._count and not self._stopping:
                    self._changed.wait()
                if not self._count:
                    return []
                key = min(self._batches_by_key, key=lambda name: self._batches_by_key[name][0].row.arrived)
                batch_key = self._batches_by_key[key]
                left = batch_key[0].row.arrived + self._max_wait - time.monotonic()
                places = select_batch([item.row.length for item in batch_key], most=self._max_batch)
                if len(places) == self._max_batch or left <= 0 or self._stopping:
                    batch = [batch_key[place] for place in places]
                    for place in reversed(places):
                        del batch_key[place]
                    if not batch_key:
                        del self._batches_by_key[key]
                    self._count -= len(batch)
                    if self._count:
                        self._changed.notify()  # one call may bring rows for several workers
                    return batch
                self._changed.wait(left)

    def _compute(self, batch: Sequence[_Waiting]) -> None:
        started = time.monotonic()
        rows = [item.row for item in batch]
        try:
            answers = self._run(rows)
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} rows got {len(answers)} answers")
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to a request and not to this thread
            if len(batch) == 1:
                batch[0].request.fail(error)
                return
            for item in batch:  # one of them is at fault, and the others are to have their answers
                if not item.request.future.done():
                    self._compute([item])
            return
        took = time.monotonic() - started
        self._seconds_per_row = 0.9 * self._seconds_per_row + 0.1 * took / len(batch)
        if self._observe is not None:
            self._observe(rows, took)
        for item, answer in zip(batch, answers, strict=True):
            item.request.answer(item.number, answer)


def _give_way() -> None:
    """Lower this thread's priority, so that those which read and answer requests get a core at once.

    They need it for moments, but hold the interpreter's lock meanwhile: while they wait for a core, every worker that is
    ready for its next batch waits for them.
    """
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
