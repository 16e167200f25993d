"""Runs slow calls one after another in a thread of their own, so that many of them take no more of the server than one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from rmlora_deploy.serving.errors import BusyError
from rmlora_deploy.serving.supervised import run_in_background

__all__ = ["OneByOne"]

_Result = TypeVar("_Result")
_MOST = 16
"""Calls that may run or wait."""
_NICENESS = 5
"""How much lower the priority of the thread, and of the processes that it starts, is than that of the server."""
_RETRY_SECONDS = 5


class OneByOne:
    """Runs calls in the order in which they came.

    Args:
        what: the calls, in words, for errors.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._thread = ThreadPoolExecutor(1, what.replace(" ", "-"), initializer=partial(run_in_background, _NICENESS))
        self._lock = threading.Lock()
        self._open = 0
        """Calls that run or wait."""

    async def run(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Return what ``call`` returns. If the task is canceled, a call that waits is not made.

        Raises:
            BusyError: too many calls are waiting.
        """
        with self._lock:
            if self._open >= _MOST:
                raise BusyError(
                    f"{_MOST} calls for {self._what} are waiting already: try again in {_RETRY_SECONDS} s.",
                    _RETRY_SECONDS,
                )
            future = self._thread.submit(call, *arguments)
            self._open += 1
        future.add_done_callback(self._forget)
        return await asyncio.wrap_future(future)

    def _forget(self, _: Future[Any]) -> None:
        with self._lock:
            self._open -= 1

    def close(self) -> None:
        """Make no more calls."""
        self._thread.shutdown(wait=False, cancel_futures=True)
