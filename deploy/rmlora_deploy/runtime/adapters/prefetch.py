"""A background thread that runs jobs one after another and does not keep the program from exiting."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["Prefetcher"]

Job = Callable[[], None]
_log = logging.getLogger("rmlora.runtime")


class Prefetcher:
    """Starts its thread with the first job and ends it once the object is garbage-collected.

    The standard library's executors are joined when the program exits, however long a file system takes to respond.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = False
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, job: Job) -> None:
        """Queue a job. An error in it is logged, and the next job is done.

        Raises:
            RuntimeError: the system cannot start another thread.
        """
        with self._lock:
            if not self._started:
                threading.Thread(target=_work, args=(self._jobs,), name="adapter-reader", daemon=True).start()
                self._started = True
        self._jobs.put(job)


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except BaseException:  # noqa: BLE001 - whatever it is, adapters that are asked for later must be read
            _log.exception("a job of the thread that reads adapters failed")
        del job  # it may hold the last reference to the Prefetcher that queued it
