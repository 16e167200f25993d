"""A worker that fails is started again, or the server says that it should be replaced; nothing admitted is left hanging."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmlora_deploy.serving.errors import BrokenError
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.queue import RequestQueue, Row
from rmlora_deploy.serving.scaling.replica import Replica
from rmlora_deploy.serving.service import Service
from tests.helpers.servers import ask, classify, serving, until

LONG = 60.0


def rows(*numbers: int) -> list[Row]:
    return [Row({"x": np.array([number])}, None, 0) for number in numbers]


def answer(batch: Sequence[Row]) -> list[np.ndarray]:
    return [row.arrays["x"] for row in batch]


def failing(queue: RequestQueue, name: str, times: int, error: BaseException) -> None:
    """Make a method of ``queue`` raise ``error`` so many times."""
    method, left = getattr(queue, name), [times]

    def broken(*given: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return method(*given)

    setattr(queue, name, broken)


@pytest.mark.parametrize("error", [RuntimeError("no memory"), SystemExit(1), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("name", ["_compute", "_has_ended"])
def test_an_error_outside_a_batch_fails_its_requests_and_ends_no_worker(name: str, error: BaseException) -> None:
    queue = RequestQueue(answer, max_batch=4, max_wait=0.0, max_queue=10)
    failing(queue, name, 1, error)
    with pytest.raises(RuntimeError, match="the worker failed"):
        queue.submit(rows(1)).result(LONG)
    assert queue.submit(rows(2)).result(LONG) == [2]
    assert (queue.failures, queue.alive, queue.problem()) == (1, 1, None)
    assert queue.close(LONG)


def test_an_error_while_a_batch_is_selected_loses_nothing() -> None:
    queue = RequestQueue(answer, max_batch=4, max_wait=0.0, max_queue=10)
    failing(queue, "_max_rows", 1, TypeError("what is this row?"))
    assert queue.submit(rows(1)).result(LONG) == [1]
    assert (queue.failures, queue.alive) == (1, 1)
    assert queue.close(LONG)


def test_a_row_that_nothing_can_be_done_with_does_not_stop_the_others() -> None:
    queue = RequestQueue(answer, max_batch=4, max_wait=0.0, max_queue=10)
    bad = Row({"x": np.array([1])}, None, 0, length=2)
    future = queue.submit([bad])
    future.result(LONG)
    failing(queue, "_max_rows", 2, TypeError("what is this row?"))
    with pytest.raises(RuntimeError, match="failed again and again"):
        queue.submit(rows(1)).result(LONG)
    assert queue.submit(rows(2)).result(LONG) == [2]
    assert queue.close(LONG)


def test_figures_that_cannot_be_counted_cost_no_answer() -> None:
    def observe(*_: object) -> None:
        raise ValueError("no such label")

    queue = RequestQueue(answer, max_batch=4, max_wait=0.0, max_queue=10, observe=observe)
    assert queue.submit(rows(1, 2)).result(LONG) == [1, 2]
    assert (queue.failures, queue.alive) == (0, 1)
    assert queue.close(LONG)


def test_a_worker_that_always_fails_is_given_up_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmlora_deploy.serving.supervised._PAUSE", 0.001)
    queue = RequestQueue(answer, max_batch=4, max_wait=0.0, max_queue=1000)
    failing(queue, "_take_batch", 5, RuntimeError("broken for good"))
    futures = [queue.submit(rows(number)) for number in range(20)]
    until(lambda: not queue.alive)
    ended = [future.exception(LONG) for future in futures]
    assert sum(isinstance(error, (BrokenError, RuntimeError)) for error in ended) >= 16  # one batch had begun before
    with pytest.raises(BrokenError, match="send the request to another one"):
        queue.submit(rows(1))
    assert queue.problem() is not None
    assert queue.close(LONG)


def test_one_worker_of_two_that_is_given_up_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmlora_deploy.serving.supervised._PAUSE", 0.001)
    queue = RequestQueue(answer, max_batch=4, max_wait=0.0, max_queue=10, workers=2)
    assert queue.problem() is None
    queue._workers.alive = 1
    assert queue.problem() is not None
    assert queue.submit(rows(1)).result(LONG) == [1]
    assert queue.close(LONG)


def test_a_batch_that_does_not_end_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmlora_deploy.serving.queue._STUCK_SECONDS", 0.1)
    queue = RequestQueue(
        lambda batch: time.sleep(0.6) or answer(batch), max_batch=1, max_wait=0, max_queue=9, timeout=0.1
    )
    future = queue.submit(rows(1))
    until(lambda: queue.problem() is not None)
    assert "has been running" in str(queue.problem())
    future.result(LONG)
    until(lambda: queue.problem() is None)
    assert queue.close(LONG)


def test_rows_whose_time_is_over_are_not_computed() -> None:
    computed: list[int] = []

    def run(batch: Sequence[Row]) -> list[np.ndarray]:
        computed.extend(int(row.arrays["x"][0]) for row in batch)
        time.sleep(0.2)
        return answer(batch)

    queue = RequestQueue(run, max_batch=1, max_wait=0.0, max_queue=10)
    first, late = queue.submit(rows(1)), queue.submit(rows(2), deadline=time.monotonic() + 0.05)
    with pytest.raises(Exception, match="no answer within"):
        late.result(LONG)
    assert first.result(LONG) == [1] and computed == [1]
    assert queue.close(LONG)


def test_a_server_restarts_its_worker_counts_and_logs_it(
    served: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with serving({"words": served["words"]}) as running, caplog.at_level(logging.ERROR, "rmlora.serve"):
        assert running.registry is not None
        failing(running.registry.runners["words"].queue, "_compute", 1, SystemExit(3))
        failed = ask(running.url, "/classify", {"model": "words", "input": "w1"})
        assert failed.status == 500 and "its log gives the reason" in failed.message
        assert np.argmax(classify(running.url, "words", "w2")[0]) == 2
        assert ask(running.url, "/healthz").status == 200
        text = ask(running.url, "/metrics").text
        assert 'rmlora_worker_failures_total{bundle="words"} 1.0' in text
        assert 'rmlora_workers{bundle="words"} 1.0' in text
    assert any("a worker failed and is started again" in record.message for record in caplog.records)


def test_a_server_that_cannot_compute_fails_its_health_checks(
    served: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmlora_deploy.serving.supervised._PAUSE", 0.001)
    with serving({"words": served["words"]}) as running:
        assert running.registry is not None
        queue = running.registry.runners["words"].queue
        failing(queue, "_take_batch", 10, RuntimeError("broken for good"))
        ask(running.url, "/classify", {"model": "words", "input": "w1"})
        until(lambda: not queue.alive)
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert ask(running.url, path).status == 503, path
        started = time.monotonic()
        refused = ask(running.url, "/classify", {"model": "words", "input": "w1"})
        assert refused.status == 503 and "gave up" in refused.message
        assert time.monotonic() - started < 5  # it does not wait for the time limit
        assert json.loads(ask(running.url, "/stats").text)["waiting"] == 0


def test_ray_learns_of_it_too(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}) as running:
        assert running.registry is not None
        replica = Replica.__new__(Replica)  # what Ray starts needs a cluster; this is what it asks
        replica._closed, replica._service = True, Service(running.registry, Metrics())
        replica.check_health()
        running.registry.runners["words"].queue._workers.alive = 0
        with pytest.raises(BrokenError, match="gave up"):
            replica.check_health()
