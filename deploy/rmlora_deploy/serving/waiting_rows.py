"""Rows that wait to be computed, in the order in which it is their turn.

A request that is little work is *light*: its rows have their turn when they arrive. The rows of a heavy request are
*paced*: their turns are spread over time, behind those of other heavy requests, and workers of low priority compute them.
So light requests that come later pass them.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections import Counter
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from rmlora.inputs import Arrays
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName
from rmlora_deploy.serving.batch_selection import select_batch
from rmlora_deploy.serving.service_time import length_bucket

__all__ = ["Answer", "Request", "Row", "RowList", "WaitingRow"]

Answer: TypeAlias = npt.NDArray[Any]

_CONSIDERED = 32
"""Times ``max_rows`` of waiting rows that a batch is selected from, so that a long queue costs no more than a short one."""


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

    @property
    def bucket(self) -> int:
        """Bucket of its length, for estimates of time."""
        return length_bucket(self.length)


class Request:
    """The rows of one request; several workers may answer them at the same time.

    Args:
        rows: number of rows.
        deadline: when its answer is due (``time.monotonic``); None if it may take any time.
    """

    def __init__(self, rows: int, deadline: float | None = None) -> None:
        self.future: Future[list[Answer]] = Future()
        self.deadline = deadline
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

    def fail(self, error: BaseException) -> None:
        """End the request with ``error``, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class WaitingRow:
    """A row in the queue, and the request it belongs to."""

    row: Row
    request: Request
    number: int
    """Index of the row in its request."""
    turn: float
    """When it is its turn (``time.monotonic``)."""
    paced: bool = False
    """True if its turn is later than its arrival."""


class RowList:
    """Rows by batch key, each key's in the order of their turns; not safe to use from several threads at once."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, list[WaitingRow]] = {}
        """A key without rows is removed."""
        self.buckets: Counter[int] = Counter()
        """Bucket of length → rows."""

    def __len__(self) -> int:
        return self.buckets.total()

    def add(self, item: WaitingRow) -> None:
        """Add a row behind those whose turn is not later."""
        waiting = self._by_key.setdefault(item.row.batch_key, [])
        insort(waiting, item, key=lambda other: other.turn)
        self.buckets[item.row.bucket] += 1

    def remove(self, request: Request) -> None:
        """Remove the rows of ``request``."""
        for key, waiting in list(self._by_key.items()):
            if any(item.request is request for item in waiting):
                self._forget([item for item in waiting if item.request is request])
                self._keep(key, [item for item in waiting if item.request is not request])

    def first(self) -> WaitingRow | None:
        """Return the row whose turn comes first."""
        return min((waiting[0] for waiting in self._by_key.values()), key=lambda item: item.turn, default=None)

    def select(self, first: WaitingRow, max_rows: int) -> list[WaitingRow]:
        """Return ``first``, which has its turn first, and the rows to compute with it; they stay in the list."""
        considered = self._by_key[first.row.batch_key][: _CONSIDERED * max_rows]
        indices = select_batch([item.row.length for item in considered], max_rows=max_rows)
        return [considered[index] for index in indices]

    def take(self, batch: Sequence[WaitingRow]) -> None:
        """Remove the rows of a batch that was selected."""
        key, taken = batch[0].row.batch_key, set(map(id, batch))
        self._forget(batch)
        self._keep(key, [item for item in self._by_key[key] if id(item) not in taken])

    def _forget(self, items: Sequence[WaitingRow]) -> None:
        self.buckets.subtract(Counter(item.row.bucket for item in items))

    def _keep(self, key: Hashable, waiting: list[WaitingRow]) -> None:
        if waiting:
            self._by_key[key] = waiting
        else:
            del self._by_key[key]
