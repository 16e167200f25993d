"""Memory that is used again: what is read over and over into memory of its own costs page faults, not copying."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool"]


class BufferPool:
    """Blocks of bytes that come back by themselves when nothing refers to them any more; for any number of threads.

    Args:
        kept: free blocks that are kept for later.
    """

    def __init__(self, kept: int = 8) -> None:
        self._kept = kept
        self._free: list[bytearray] = []
        # Reentrant: a collection that frees a block may run while this very thread looks for one.
        self._lock = threading.RLock()

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """Return ``size`` bytes of any content; they are free again once no array refers to them."""
        with self._lock:
            found = next((block for block in reversed(self._free) if len(block) == size), None)  # the warmest
            self._free = [block for block in self._free if block is not found]  # == would compare their contents
        block = bytearray(size) if found is None else found
        array: npt.NDArray[np.uint8] = np.ndarray(
            size, np.uint8, buffer=block
        )  # views of it refer to this array, not to the block
        weakref.finalize(array, self._give_back, block).atexit = False
        return array

    def _give_back(self, block: bytearray) -> None:
        with self._lock:
            self._free = [*self._free[-self._kept + 1 :], block]
