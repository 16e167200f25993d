"""Threads that repeat a step and go on after it failed, so that an error never ends the only worker unnoticed."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Supervised", "run_in_background"]

_PAUSE = 0.05
"""Seconds before a worker goes on after a failure; doubled every time."""
_ATTEMPTS = 5
"""Failures in a row after which a worker is given up."""
_log = logging.getLogger("rmlora.serve")


class Supervised:
    """Worker threads. A failed step is logged and counted, and the worker starts again; after five in a row it ends.

    Args:
        step: called again and again by every thread, until it returns False.
        count: number of threads.
        niceness: how much lower their priority is than that of the thread that starts them; 0 is the same.
        on_failure: called after a failure with the number of failures in a row.
        on_loss: called after a worker was given up.
    """

    def __init__(
        self,
        step: Callable[[], bool],
        *,
        count: int,
        niceness: int,
        on_failure: Callable[[int], None],
        on_loss: Callable[[], None],
    ) -> None:
        self._step, self._on_failure, self._on_loss = step, on_failure, on_loss
        self._niceness = niceness
        self._lock = threading.Lock()
        self.failures = 0
        """Failures of all workers so far."""
        self.alive = count
        """Workers that were not given up."""
        self._threads = [threading.Thread(target=self._work, name="batch", daemon=True) for _ in range(count)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float | None) -> bool:
        """Wait for the threads to end, and return True if that took at most ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        if self._niceness:
            run_in_background(self._niceness)
        in_a_row = 0
        while in_a_row < _ATTEMPTS:
            try:
                if not self._step():
                    return
                in_a_row = 0
            except BaseException as error:  # noqa: BLE001 - whatever it is, it must not end this thread unnoticed
                in_a_row += 1
                self._record(error, in_a_row)
                time.sleep(_PAUSE * 2**in_a_row)
        with self._lock:
            self.alive -= 1
        _log.critical("a worker failed %d times in a row and was given up", in_a_row)
        self._on_loss()

    def _record(self, error: BaseException, in_a_row: int) -> None:
        with self._lock:
            self.failures += 1
        _log.error("a worker failed and is started again", exc_info=error)
        try:
            self._on_failure(in_a_row)
        except Exception as second:  # noqa: BLE001 - as above
            _log.error("cleaning up after a worker failed", exc_info=second)


def run_in_background(niceness: int, process: int = 0) -> None:
    """Let other threads go first: those that read and answer requests, and those that compute light ones.

    Besides its lower priority the thread gets Linux's policy SCHED_BATCH, under which it never interrupts another on
    waking up.

    Args:
        niceness: how much lower its priority is.
        process: id of another process to do this to; 0 is the calling thread.
    """
    if sys.platform == "linux":  # elsewhere threads have no policy and no priority of their own
        who = process or threading.get_native_id()
        with suppress(OSError):
            if os.sched_getscheduler(who) == os.SCHED_OTHER:  # an administrator's choice of another policy stays
                os.sched_setscheduler(who, os.SCHED_BATCH, os.sched_param(0))
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, who, os.getpriority(os.PRIO_PROCESS, who) + niceness)
