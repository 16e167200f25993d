"""What is accepted: no more than can be answered in time, light requests before heavy ones, and a true Retry-After."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmlora_deploy.serving.admission import Admission, Load
from rmlora_deploy.serving.errors import BusyError, TooLargeError
from rmlora_deploy.serving.queue import RequestQueue, Row
from rmlora_deploy.serving.retry_slots import MAX_WAIT, RetrySlots
from rmlora_deploy.serving.service_time import ServiceTimes, length_bucket
from tests.helpers.servers import ask, held_back, serving, until

LONG = 60.0


class Clock:
    """A clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def rows(count: int, length: int = 8) -> list[Row]:
    return [Row({"x": np.array([number])}, None, 0, length) for number in range(count)]


# -- how long rows take ----------------------------------------------------------------------------------------------


def test_buckets_are_half_an_octave_wide() -> None:
    buckets = [length_bucket(length) for length in (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 128, 191, 192, 256)]
    assert buckets == [0, 0, 2, 3, 4, 4, 5, 6, 7, 8, 9, 14, 14, 15, 16]


def test_service_times_are_learned_by_length() -> None:
    times = ServiceTimes()
    assert times.per_row(8) == 0.0
    times.learn([16] * 4, 0.4, busy=False)
    assert times.per_row(length_bucket(16)) == pytest.approx(0.1)
    assert times.per_row(length_bucket(64)) == pytest.approx(0.4)  # in proportion to the length
    times.learn([16] * 16, 0.8, busy=True)
    assert times.per_row(length_bucket(16)) == pytest.approx(0.05)  # full batches count, the first did not
    times.learn([16], 5.0, busy=False)
    assert times.per_row(length_bucket(16)) == pytest.approx(0.05)
    assert times.of({length_bucket(16): 10, 0: 0}) == pytest.approx(0.5)


def test_one_batch_that_was_held_up_changes_little_and_a_slow_spell_is_forgotten() -> None:
    clock = Clock()
    times = ServiceTimes(clock)
    times.learn([16] * 10, 1.0, busy=True)
    times.learn([16] * 10, 1000.0, busy=True)
    assert times.per_row(length_bucket(16)) <= 0.13
    for _ in range(50):
        times.learn([16] * 10, 10.0, busy=True)
    assert times.per_row(length_bucket(16)) > 0.5
    clock.now += 600
    assert times.per_row(length_bucket(16)) == pytest.approx(0.1, rel=0.01)


# -- what is accepted ------------------------------------------------------------------------------------------------


def test_the_queue_is_bounded_by_time() -> None:
    admission = Admission(max_queue=1000, timeout=10.0, workers=2)
    assert not admission.check(1, Load(5, 7.9, 0.0))
    with pytest.raises(BusyError, match=r"what waits takes about 4\.5 s, too much to answer within 10 s"):
        admission.check(1, Load(5, 9.0, 0.0))
    assert admission.check(1, Load(5, 9.0, 0.0), returning=True)  # who was told to come back has room
    with pytest.raises(BusyError):
        admission.check(1, Load(5, 12.5, 0.0), returning=True)
    assert not admission.check(1, Load(5, 1.0, 10.0))  # a light request passes heavy ones
    with pytest.raises(BusyError):
        admission.check(1, Load(5, 1.0, 11.5))
    assert admission.refused == 3


def test_a_request_that_takes_longer_than_any_may_is_the_clients_mistake() -> None:
    admission = Admission(max_queue=1000, timeout=10.0, workers=1)
    admission.times.learn([8], 0.1, busy=True)
    assert len(admission.admit(rows(59), Load(0, 0.0, 0.0))) == 59
    with pytest.raises(TooLargeError, match="takes about 7 s to compute, and the server accepts at most 6 s for one"):
        admission.admit(rows(70), Load(0, 0.0, 0.0))
    with pytest.raises(BusyError, match=r"with this request, what waits would take about 7 s"):
        admission.admit(rows(50), Load(3, 2.0, 0.0))
    with pytest.raises(BusyError, match=r"busy with 1 s of work for other large requests"):
        admission.admit(rows(50), Load(3, 0.0, 1.0))


@given(st.lists(st.tuples(st.integers(1, 60), st.sampled_from([4, 16, 64])), min_size=1, max_size=30))
def test_whatever_is_accepted_has_its_turn_in_time(requests: list[tuple[int, int]]) -> None:
    admission = Admission(max_queue=10_000, timeout=10.0, workers=1)
    admission.times.learn([16], 0.05, busy=True)
    light = paced = 0.0
    for count, length in requests:
        made = rows(count, length)
        try:
            admission.check(count, Load(0, light, paced))
            turns = admission.admit(made, Load(0, light, paced))
        except (BusyError, TooLargeError):
            continue
        assert turns == sorted(turns)
        assert turns[-1] <= time.monotonic() + 5.0  # half of the time limit; light ones wait for at most 0.4 of it
        for row, turn in zip(made, turns, strict=True):
            cost = admission.times.per_row(row.bucket)
            light, paced = (light + cost, paced) if turn <= row.arrived else (light, paced + cost)
    assert light + paced <= 6.0 + 1e-6


def test_requests_that_were_checked_together_are_all_queued_and_none_without_a_time_to_come_back() -> None:
    admission = Admission(max_queue=10, timeout=10.0, workers=1)
    for number in range(4):
        assert not admission.check(1, Load(9, 0.0, 0.0), ticket=number)
    for number in range(4):  # only one of them has room, but all were let pass
        admission.admit(rows(1), Load(9 + number, 0.0, 0.0), checked=True, ticket=number)
    with pytest.raises(BusyError):
        admission.admit(rows(1), Load(15, 0.0, 0.0), checked=True, ticket=5)
    assert len(admission.slots) == 1


def test_light_requests_pass_the_rows_of_a_heavy_one() -> None:
    order: list[int] = []
    going = threading.Event()

    def run(batch: Sequence[Row]) -> list[np.ndarray]:
        assert going.wait(LONG)
        time.sleep(0.005)
        order.append(int(batch[0].arrays["who"][0]))
        return [row.arrays["who"] for row in batch]

    def request(who: int, count: int, length: int) -> list[Row]:
        return [Row({"who": np.array([who])}, None, 0, length) for _ in range(count)]

    queue = RequestQueue(run, max_batch=4, max_wait=0.0, max_queue=1000)
    queue.admission.times.learn([64], 0.05, busy=True)
    heavy = queue.submit(request(0, 80, 64))
    light = [queue.submit(request(number, 1, 64)) for number in range(1, 6)]
    going.set()
    wait([heavy, *light], LONG)
    last_light = max(order.index(number) for number in set(order) - {0})
    assert order[:last_light].count(0) <= 10, order  # of 80, though all of them came first
    assert len(heavy.result(0)) == 80
    assert queue.close(LONG)


def test_nothing_admitted_is_late_at_three_times_the_capacity() -> None:
    def run(batch: Sequence[Row]) -> list[np.ndarray]:
        time.sleep(0.01 * len(batch))
        return [row.arrays["x"] for row in batch]

    queue = RequestQueue(run, max_batch=8, max_wait=0.0, max_queue=10_000, timeout=2.0)
    futures: list[tuple[float, Future[Any]]] = []
    refused, started = 0, time.monotonic()
    for number in range(1200):  # 300 a second, and 100 a second can be computed
        time.sleep(max(0.0, started + number / 300 - time.monotonic()))
        arrived = time.monotonic()
        try:
            queue.check()
            future = queue.submit(rows(1), deadline=arrived + 2.0)
        except BusyError:
            refused += 1
            continue
        future.add_done_callback(lambda _, arrived=arrived: took.append(time.monotonic() - arrived))  # type: ignore[misc]
        futures.append((arrived, future))
    seconds = time.monotonic() - started
    for _, future in futures:
        future.result(LONG)  # raises if it was late
    assert max(took) < 2.0
    assert refused > 0.4 * 1200
    assert len(futures) > 0.8 * 90 * seconds
    assert queue.close(LONG)


took: list[float] = []


# -- when to come back -----------------------------------------------------------------------------------------------


def test_refused_clients_are_spread_over_time_and_let_in_when_they_come_back() -> None:
    clock = Clock()
    slots = RetrySlots(clock)
    waits = [slots.give(ticket, 0.07, 0.0) for ticket in range(100)]
    assert waits == sorted(waits) and waits[0] == 1 and 9 <= waits[-1] <= 11  # ten in a second, at 0.7 of the time
    assert not slots.redeem(50)  # too early
    for second in range(1, 12):
        clock.now = 1000.0 + second
        due = [ticket for ticket, wait in enumerate(waits) if wait == second]
        assert all(slots.redeem(ticket) for ticket in due)
        assert not any(slots.redeem(ticket) for ticket in due)  # only once
    assert len(slots) == 0 and not slots.redeem(None)


def test_clients_that_never_come_back_are_forgotten() -> None:
    clock = Clock()
    slots = RetrySlots(clock)
    for ticket in range(1000):
        slots.give(ticket, 0.01, 0.0)
    assert len(slots) == 1000
    clock.now += 100
    assert not slots.redeem(999) and len(slots) == 0
    assert slots.give(1, 0.05, 2.0) == 2
    assert slots.give(1, 1e9, 0.0) <= MAX_WAIT and slots.give(1, 1.0, 0.0) == MAX_WAIT


def test_once_the_overload_is_over_nobody_has_to_wait_long() -> None:
    admission = Admission(max_queue=10, timeout=10.0, workers=1)
    admission.times.learn([8], 0.5, busy=True)
    admission.admit(rows(1), Load(0, 0.0, 0.0))

    def refused() -> int:
        with pytest.raises(BusyError) as error:
            admission.check(1, Load(10, 5.0, 0.0), ticket=1)
        return error.value.retry_after

    assert [refused() for _ in range(50)][-1] > 30
    admission.check(1, Load(0, 0.0, 0.0))
    assert refused() <= 2


def test_a_client_that_obeys_retry_after_is_let_in(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}, max_queue=2, max_inputs=1, max_batch=1) as running:
        assert running.registry is not None
        queue = running.registry.runners["words"].queue
        with held_back(running, "words") as begun:
            waiting = [queue.submit(_words())]
            assert begun.acquire(timeout=30)
            waiting += [queue.submit(_words()) for _ in range(2)]
            sent = {"model": "words", "input": "w1", "user": "me"}
            refused = ask(running.url, "/classify", sent)
            assert refused.status == 429 and "at most 2 may" in refused.message
            time.sleep(int(refused.headers["retry-after"]))
            assert ask(running.url, "/classify", {**sent, "user": "other"}).status == 429
            answer: list[Any] = []  # the queue is still full, and the first client is let in
            thread = threading.Thread(target=lambda: answer.append(ask(running.url, "/classify", sent)))
            thread.start()
            until(lambda: queue.waiting == 3)
        thread.join(LONG)
        assert answer[0].status == 200
        wait(waiting, LONG)


def _words() -> list[Row]:
    ids = np.array([3, 4])
    return [Row({"input_ids": ids, "attention_mask": np.ones_like(ids)}, None, "inputs", 2)]
