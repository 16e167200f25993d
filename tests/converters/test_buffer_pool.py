"""A buffer is used again only when nothing refers to it."""

from __future__ import annotations

import gc

import numpy as np

from rmlora_converters.graph.files.buffer_pool import BufferPool


def test_a_buffer_is_used_again_only_when_nothing_refers_to_it() -> None:
    pool = BufferPool()
    first = pool.take(16)
    view = first[4:8].view(np.float32).reshape(1)
    view[0] = 7.0
    address = first.ctypes.data
    del first
    gc.collect()
    assert pool.take(16).ctypes.data != address, "a view still refers to it"
    assert view[0] == 7.0
    del view
    gc.collect()
    assert pool.take(16).ctypes.data == address
