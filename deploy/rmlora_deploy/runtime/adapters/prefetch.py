"""A thread that does what it is told one after the other, and does not keep the program from ending."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["Prefetcher"]

Job = Callable[[], None]


class Prefetcher:
    """Starts its thread with the first job and ends it when nobody refers to this object any more.

    An executor of the standard library would be waited for when the program ends, however long a file system does not answer.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = False
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, job: Job) -> None:
        """Queue a job, which raises nothing.

        Raises:
            RuntimeError: the system gives no thread.
        """
        with self._lock:
            if not self._started:
                threading.Thread(target=_work, args=(self._jobs,), name="adapter-reader", daemon=True).start()
                self._started = True
        self._jobs.put(job)


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # it may hold the last reference to what submitted it
