"""The request queue: which rows are computed together, which wait, which are removed, and that no answer is mixed up."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmlora.errors import InputError
from rmlora_deploy.serving.batch_selection import select_batch
from rmlora_deploy.serving.errors import BusyError, StoppingError
from rmlora_deploy.serving.queue import RequestQueue, Row

LONG = 60.0
"""A timeout in seconds that only a failing test reaches."""


class Model:
    """Answers a row with ten times its number; records its batches, and can be held back."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.going = threading.Event()
        self.going.set()
        self.started = threading.Semaphore(0)
        """Released at the start of each batch."""
        self.bad: set[int] = set()
        self.error: Exception = InputError("this row cannot be computed")

    def __call__(self, rows: Sequence[Row]) -> list[np.ndarray]:
        numbers = [int(row.arrays["x"][0]) for row in rows]
        self.batches.append(numbers)
        self.started.release()
        assert self.going.wait(LONG)
        if self.bad & set(numbers):
            raise self.error
        return [np.array([10 * number]) for number in numbers]


@contextmanager
def make_queue(model: Callable[..., Any], **options: Any) -> Iterator[RequestQueue]:
    queue = RequestQueue(model, **{"max_batch": 4, "max_wait": 0.0, "max_queue": 1000, **options})
    yield queue
    if isinstance(model, Model):
        model.going.set()
    assert queue.close(LONG)


def rows(*numbers: int, batch_key: object = 0) -> list[Row]:
    return [Row({"x": np.array([number])}, None, batch_key) for number in numbers]


def answers(future: Future[list[np.ndarray]]) -> list[int]:
    return [int(answer[0]) for answer in future.result(LONG)]


@contextmanager
def busy(queue: RequestQueue, model: Model) -> Iterator[None]:
    """Keep the worker busy with another row until the block ends, so that rows queued inside it wait."""
    model.going.clear()
    first = queue.submit(rows(0, batch_key="busy"))
    assert model.started.acquire(timeout=LONG)
    yield
    model.going.set()
    assert answers(first) == [0]


def test_what_waits_is_computed_together_up_to_max_batch_and_in_order() -> None:
    model = Model()
    with make_queue(model) as queue:
        with busy(queue, model):
            futures = [queue.submit(rows(*numbers)) for numbers in ((1, 2), (3,), (4, 5, 6))]
            assert queue.waiting == 6
        assert [answers(future) for future in futures] == [[10, 20], [30], [40, 50, 60]]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert queue.waiting == 0


def test_a_row_waits_for_others_no_longer_than_max_wait() -> None:
    model = Model()
    with make_queue(model, max_wait=3600.0) as queue:
        first = queue.submit(rows(1))
        assert not model.started.acquire(timeout=0.05)  # alone, it waits
        rest = queue.submit(rows(2, 3, 4))
        assert answers(rest) == [20, 30, 40]
        assert answers(first) == [10]
    assert model.batches == [[1, 2, 3, 4]]
    with make_queue(model, max_wait=0.01) as queue:
        assert answers(queue.submit(rows(7))) == [70]


def test_rows_with_other_batch_keys_are_computed_apart() -> None:
    model = Model()
    with make_queue(model) as queue:
        with busy(queue, model):
            futures = [queue.submit(rows(number, batch_key=number % 2)) for number in range(1, 7)]
        assert [answers(future) for future in futures] == [[10], [20], [30], [40], [50], [60]]
    assert model.batches[1:] == [[1, 3, 5], [2, 4, 6]]


def test_the_key_that_waited_longest_comes_first_so_none_starves() -> None:
    model = Model()
    with make_queue(model, max_batch=2) as queue:
        with busy(queue, model):
            futures = [queue.submit(rows(1, 2, batch_key="crowded")), queue.submit(rows(3, batch_key="lonely"))]
            futures += [queue.submit(rows(number, batch_key="crowded")) for number in range(4, 20)]
        wait(futures, LONG)
    assert model.batches[1] == [1, 2]
    assert model.batches[2] == [3]  # before the fifteen that came later


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=60), most=st.integers(1, 20), data=st.data())
def test_a_batch_has_the_oldest_row_and_little_padding(lengths: list[int], most: int, data: st.DataObject) -> None:
    padding = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    indices = select_batch(lengths, max_rows=most, padding=padding)
    assert indices[0] == 0 and indices == sorted(set(indices)) and len(indices) <= most
    taken = [lengths[index] for index in indices]
    assert len(taken) * max(taken) <= (1 + padding) * sum(taken) + 1e-9
    alike = sum(length == lengths[0] for length in lengths)
    assert len(indices) >= min(most, alike), "rows of the same length cost nothing"


def test_rows_of_similar_length_are_selected() -> None:
    assert select_batch([16, 100, 15, 3, 17, 16, 90], max_rows=8) == [0, 2, 4, 5]
    assert select_batch([100, 16, 15, 90], max_rows=8) == [0, 3]
    assert select_batch([7] * 9, max_rows=4) == [0, 1, 2, 3]


def test_lengths_are_kept_apart_in_the_queue() -> None:
    batches: list[list[int]] = []
    release = threading.Event()

    def run(rows: Sequence[Row]) -> list[np.ndarray]:
        release.wait(10)
        batches.append([row.length for row in rows])
        return [row.arrays["x"] for row in rows]

    queue = RequestQueue(run, max_batch=8, max_wait=0.0, max_queue=100)
    first = queue.submit([Row({"x": np.array([0])}, None, "text", 1)])
    futures = [queue.submit([Row({"x": np.array([n])}, None, "text", n)]) for n in (10, 100, 11, 99, 12)]
    release.set()
    assert [int(future.result(10)[0][0]) for future in (first, *futures)] == [0, 10, 100, 11, 99, 12]
    queue.close()
    assert sorted(map(sorted, batches)) in ([[1], [10, 11, 12], [99, 100]], [[1], [10], [11, 12], [99, 100]])


def test_one_bad_row_fails_alone() -> None:
    for error in (InputError("this row cannot be computed"), RuntimeError("out of memory")):
        model = Model()
        model.bad, model.error = {2}, error
        with make_queue(model) as queue:
            with busy(queue, model):
                futures = [queue.submit(rows(number)) for number in (1, 2, 3)]
            assert answers(futures[0]) == [10]
            assert answers(futures[2]) == [30]
            with pytest.raises(type(error)):
                futures[1].result(LONG)
            assert answers(queue.submit(rows(4))) == [40]


def test_a_request_with_a_bad_row_fails_as_a_whole_and_only_once() -> None:
    model = Model()
    model.bad = {2, 3}
    with make_queue(model, max_batch=2) as queue:
        with pytest.raises(InputError):
            queue.submit(rows(1, 2, 3, 4, 5, 6)).result(LONG)
        assert answers(queue.submit(rows(7))) == [70]


def test_a_model_that_answers_too_little_ends_no_worker() -> None:
    with make_queue(lambda rows: []) as queue:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="1 rows got 0 answers"):
                queue.submit(rows(1)).result(LONG)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    model = Model()
    with make_queue(model, max_queue=3) as queue:
        with busy(queue, model):
            waiting = queue.submit(rows(1, 2))
            with pytest.raises(BusyError, match="2 rows are waiting and at most 3 may") as refused:
                queue.submit(rows(3, 4))
            assert refused.value.retry_after >= 1
            third = queue.submit(rows(5))  # a request of the right size still fits
        assert answers(waiting) == [10, 20]
        assert answers(third) == [50]


def test_canceled_requests_leave_the_queue_and_make_room_for_others() -> None:
    model = Model()
    with make_queue(model, max_queue=3) as queue:
        with busy(queue, model):
            gone, stays = queue.submit(rows(1, 2)), queue.submit(rows(3))
            assert gone.cancel()
            assert queue.waiting == 1
            late = queue.submit(rows(4, 5))
        assert answers(stays) == [30]
        assert answers(late) == [40, 50]
        with pytest.raises(CancelledError):
            gone.result(LONG)
    assert model.batches[1:] == [[3, 4, 5]]


def test_a_request_canceled_while_it_is_computed_ends_no_worker() -> None:
    model = Model()
    with make_queue(model) as queue:
        for fails in (False, True):
            model.bad = {1} if fails else set()
            model.going.clear()
            future = queue.submit(rows(1))
            assert model.started.acquire(timeout=LONG)
            assert future.cancel()
            model.going.set()
            assert answers(queue.submit(rows(2))) == [20]
            assert model.started.acquire(timeout=LONG)


class _Late(Future[Any]):
    """Canceled by another thread right after a call of ``done``."""

    def done(self) -> bool:
        before = super().done()
        self.cancel()
        return before


def test_a_request_canceled_at_the_last_moment_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    with make_queue(model) as queue:
        with monkeypatch.context() as patched:
            patched.setattr("rmlora_deploy.serving.waiting_rows.Future", _Late)
            futures = [queue.submit(rows(1)), queue.submit(rows(2, 3))]
        assert answers(queue.submit(rows(4))) == [40]
    assert all(future.cancelled() for future in futures)


def test_close_computes_what_waits_and_takes_no_more() -> None:
    model = Model()
    queue = RequestQueue(model, max_batch=4, max_wait=3600.0, max_queue=100)
    with busy_until_closed(queue, model) as futures:
        assert not queue.close(0.01)  # the first batch is still under way
        with pytest.raises(StoppingError):
            queue.submit(rows(9))
    assert queue.close(LONG)
    assert [answers(future) for future in futures] == [[0], [10, 20], [30]]


@contextmanager
def busy_until_closed(queue: RequestQueue, model: Model) -> Iterator[list[Future[Any]]]:
    model.going.clear()
    first = queue.submit(rows(0, 0, 0, 0))
    first_of = Future[Any]()
    first.add_done_callback(lambda done: first_of.set_result(done.result()[:1]))
    assert model.started.acquire(timeout=LONG)
    yield [first_of, queue.submit(rows(1, 2)), queue.submit(rows(3))]
    model.going.set()


def test_rows_of_one_call_go_to_all_workers() -> None:
    model = Model()
    model.going.clear()
    with make_queue(model, max_batch=2, workers=3) as queue:
        future = queue.submit(rows(*range(6)))
        for _ in range(3):  # none of the batches has ended, so three workers are at it
            assert model.started.acquire(timeout=LONG)
        model.going.set()
        assert answers(future) == [0, 10, 20, 30, 40, 50]


def test_workers_that_end_at_the_same_time_lose_no_answer() -> None:
    together = threading.Barrier(4, timeout=LONG)

    def run(batch: Sequence[Row]) -> list[np.ndarray]:
        together.wait()
        return [row.arrays["x"] for row in batch]

    with make_queue(run, max_batch=1, workers=4) as queue:
        for _ in range(200):
            assert answers(queue.submit(rows(1, 2, 3, 4))) == [1, 2, 3, 4]


def test_batches_are_reported_before_they_are_answered() -> None:
    seen: list[tuple[int, float]] = []
    with make_queue(Model(), observe=lambda batch, seconds: seen.append((len(batch), seconds))) as queue:
        for number in range(1, 4):
            queue.submit(rows(*range(number))).result(LONG)
            assert seen[-1][0] == number and seen[-1][1] >= 0


REQUESTS = st.lists(
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["a", "b", 8, 16])), min_size=1, max_size=9),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60)
@given(REQUESTS, st.integers(1, 7), st.integers(1, 3), st.sampled_from([0.0, 0.001]), st.sets(st.integers(0, 19)))
def test_whatever_the_mix_every_row_gets_its_own_answer(
    requests: list[list[tuple[int, object]]], most: int, workers: int, patience: float, cancelled: set[int]
) -> None:
    def run(batch: Sequence[Row]) -> list[np.ndarray]:
        assert len(batch) <= most
        assert len({row.batch_key for row in batch}) == 1
        return [row.arrays["x"] * 10 for row in batch]

    with make_queue(run, max_batch=most, max_wait=patience, workers=workers) as queue:
        with ThreadPoolExecutor(4) as callers:
            made = [
                [Row({"x": np.array([number])}, None, batch_key) for number, batch_key in request]
                for request in requests
            ]
            futures = list(callers.map(queue.submit, made))
        for number in cancelled & set(range(len(futures))):
            futures[number].cancel()
        for request, future in zip(requests, futures, strict=True):
            if not future.cancelled():
                assert answers(future) == [10 * number for number, _ in request]
    assert queue.waiting == 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux only")
def test_computing_gives_no_share_of_the_machine_away_and_heavy_work_interrupts_nothing() -> None:
    def run(rows: Sequence[Row]) -> list[np.ndarray]:
        own = threading.get_native_id()
        return [np.array([os.sched_getscheduler(own), os.getpriority(os.PRIO_PROCESS, own)]) for _ in rows]

    queue = RequestQueue(run, max_batch=2, max_wait=0, max_queue=10, timeout=LONG)
    (light,) = queue.submit([Row({"x": np.array([1])}, None, "key")]).result(LONG)
    queue.admission.times.learn([0], LONG / 100, busy=True)  # from now on two rows are a heavy request
    heavy, _ = queue.submit([Row({"x": np.array([1])}, None, "key")] * 2).result(LONG)
    queue.close()
    usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert list(light) == [os.SCHED_OTHER, usual]
    assert list(heavy) == [os.SCHED_BATCH, usual + 9]
