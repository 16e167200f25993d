"""The thread that reads adapters ahead ends with its owner, and for no other reason."""

from __future__ import annotations

import gc
import logging
import threading
import time

import pytest

from rmlora_deploy.runtime.adapters.prefetch import Prefetcher


@pytest.mark.parametrize("error", [ValueError("broken"), MemoryError(), SystemExit(3), KeyboardInterrupt()])
def test_a_job_that_fails_stops_no_other(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    prefetcher, done = Prefetcher(), threading.Event()

    def fail() -> None:
        raise error

    with caplog.at_level(logging.ERROR):
        for job in (fail, fail, done.set):
            prefetcher.submit(job)
        assert done.wait(30)
    assert [record.message for record in caplog.records] == ["a job of the thread that reads adapters failed"] * 2


def test_the_thread_ends_with_its_owner() -> None:
    prefetcher, found = Prefetcher(), list[threading.Thread]()
    prefetcher.submit(lambda: found.append(threading.current_thread()))
    end = time.monotonic() + 30
    while not found and time.monotonic() < end:
        time.sleep(0.01)
    del prefetcher
    gc.collect()
    found[0].join(30)
    assert not found[0].is_alive()
