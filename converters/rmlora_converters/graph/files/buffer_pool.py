"""Reusable buffers: reading into fresh memory each time causes page faults, which cost more than the copy itself."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool"]


class BufferPool:
    """Hands out buffers and takes each back when no array refers to it any more. Safe for use from several threads.

    Args:
        max_free: how many free buffers to keep.
    """

    def __init__(self, max_free: int = 8) -> None:
        self._max_free = max_free
        self._free: list[bytearray] = []
        # Reentrant: the garbage collector may return a buffer on a thread that is just taking one.
        self._lock = threading.RLock()

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """Return ``size`` bytes with arbitrary content; they become free again once no array refers to them."""
        with self._lock:
            # The buffer freed last comes first: it is most likely still in the processor's cache.
            found = next((buffer for buffer in reversed(self._free) if len(buffer) == size), None)
            self._free = [buffer for buffer in self._free if buffer is not found]  # == would compare contents
        buffer = bytearray(size) if found is None else found
        # Views of this array keep the array alive, and through it the buffer.
        array: npt.NDArray[np.uint8] = np.ndarray(size, np.uint8, buffer=buffer)
        weakref.finalize(array, self._give_back, buffer).atexit = False
        return array

    def _give_back(self, buffer: bytearray) -> None:
        with self._lock:
            self._free = [*self._free[-self._max_free + 1 :], buffer]
