"""Writes the tensors of a planned checkpoint in several threads, each with one piece of a tensor in memory at a time.

Most of the work is in numpy, BLAS, and the kernel's copies, none of which holds Python's lock. A piece is read, merged in place,
and written where it belongs. The order in which pieces are finished does not change the result: figures are added up in the
order of the file.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.tensors import DTYPES, TensorInfo
from rmlora_converters.block_sum import SquareSums, add_update, one_blas_thread
from rmlora_converters.delta import update_factors
from rmlora_converters.planned_tensors import PlannedTensor, RowUpdate
from rmlora_converters.rounding import RoundingMeter, checked_cast
from rmlora_converters.shards import ShardWriter

__all__ = ["write_planned"]

PIECE_BYTES = 4 << 20
"""Bytes of a tensor that a thread reads, merges and writes at a time."""
MAX_THREADS = 8
"""More would wait for the memory and for the disk, and each takes three times :data:`PIECE_BYTES` of memory."""

AnyArray = npt.NDArray[Any]


def write_planned(
    directory: Path,
    shards: Mapping[str, Sequence[PlannedTensor]],
    metadata: Mapping[str, Mapping[str, str]],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[RoundingMeter]:
    """Write ``shards`` to ``directory`` and return the meter of every module that was merged.

    Args:
        directory: where the files are created.
        shards: file name → its tensors, in file order.
        metadata: file name → the header's metadata.
        on_progress: called with (bytes written, total bytes), in the calling thread.

    Raises:
        AdapterError: a merged weight overflows its type.
        InputError: a file of the base ends early.
    """
    meters: dict[str, RoundingMeter] = {}
    total, done = sum(item.entry.nbytes for items in shards.values() for item in items), 0
    with one_blas_thread(), _threads(_usable_cores()) as workers, _threads(1) as flusher:
        flushed: list[Future[None]] = []
        for file_name, items in shards.items():
            shard = ShardWriter(directory / file_name, [item.entry for item in items], metadata[file_name])
            with shard:
                pieces = (piece for item in items for piece in _pieces(item, shard.starts[item.entry.name]))
                for written in _in_order(workers, partial(_write, shard=shard), pieces):
                    for path, sums in written.sums:
                        meters.setdefault(path, RoundingMeter(path)).add(sums)
                    done += written.nbytes
                    if on_progress:
                        on_progress(done, total)
            # The disk works on a finished shard while the next one is merged.
            flushed.append(flusher.submit(shard.flush))
        for future in flushed:
            future.result()
    return list(meters.values())


@dataclass(frozen=True)
class _Change:
    """An update of some rows of a tensor, with its factors in the layout of the tensor."""

    update: RowUpdate
    left: AnyArray
    right: AnyArray


@dataclass(frozen=True)
class _Piece:
    """What a thread writes at once: rows of a tensor that changes, bytes of one that stays, or a whole tensor."""

    item: PlannedTensor
    start: int
    stop: int
    position: int
    """Of its first byte, in the new file."""
    changes: tuple[_Change, ...] = ()


@dataclass(frozen=True)
class _Written:
    nbytes: int
    sums: tuple[tuple[str, SquareSums], ...] = ()
    """Module path and its sums over the rows of the piece."""


def _pieces(item: PlannedTensor, position: int) -> Iterator[_Piece]:
    """Cut a tensor into pieces; ``position`` is that of its first byte in the new file."""
    nbytes, shape = item.entry.nbytes, item.entry.shape
    if item.updates:
        changes = tuple(_change(update, shape[1:]) for update in item.updates)
        row_bytes = nbytes // max(1, shape[0])
        step = max(1, PIECE_BYTES // max(1, row_bytes))
        for start in range(0, shape[0], step):
            yield _Piece(item, start, min(start + step, shape[0]), position + start * row_bytes, changes)
    elif _is_copied(item):
        for start in range(0, nbytes, PIECE_BYTES):
            yield _Piece(item, start, min(start + PIECE_BYTES, nbytes), position + start)
    else:
        yield _Piece(item, 0, nbytes, position)


def _change(update: RowUpdate, inner: tuple[int, ...]) -> _Change:
    return _Change(update, *update_factors(update.module, (update.stop - update.start, *inner)))


def _is_copied(item: PlannedTensor) -> bool:
    return isinstance(item.source, TensorInfo) and item.source.dtype == item.entry.dtype


def _write(piece: _Piece, shard: ShardWriter) -> _Written:
    """Produce one piece and write it."""
    item = piece.item
    if piece.changes:
        rows = _read_rows(piece, DTYPES[item.entry.dtype])
        sums = tuple(_add(change, rows, piece) for change in piece.changes if _overlap(change.update, piece))
        shard.write(piece.position, _bytes_of(rows).data)
        return _Written(rows.nbytes, sums)
    if isinstance(item.source, TensorInfo) and _is_copied(item):
        content: AnyArray = np.empty(piece.stop - piece.start, np.uint8)
        item.source.read_into(content, piece.start)
    else:
        content = np.ascontiguousarray(checked_cast(item.source.read(), DTYPES[item.entry.dtype], item.entry.name))
        if content.nbytes != item.entry.nbytes:  # it would be written over the next tensor
            raise ValueError(f"Tensor '{item.entry.name}' has {content.nbytes} bytes, not {item.entry.nbytes}.")
    shard.write(piece.position, _bytes_of(content).data)
    return _Written(content.nbytes)


def _read_rows(piece: _Piece, stored_type: np.dtype[Any]) -> AnyArray:
    """Return the rows of a piece as the base or the adapter has them, writable."""
    item = piece.item
    rows = np.empty((piece.stop - piece.start, *item.entry.shape[1:]), stored_type)
    if isinstance(item.source, TensorInfo) and _is_copied(item):
        item.source.read_into(_bytes_of(rows), piece.start * item.source.row_bytes)
    else:
        rows[...] = item.source.read(piece.start, piece.stop)
    return rows


def _bytes_of(array: AnyArray) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def _overlap(update: RowUpdate, piece: _Piece) -> bool:
    return max(piece.start, update.start) < min(piece.stop, update.stop)


def _add(change: _Change, rows: AnyArray, piece: _Piece) -> tuple[str, SquareSums]:
    """Add the part of an update that falls on the piece to ``rows``."""
    update = change.update
    low, high = max(piece.start, update.start), min(piece.stop, update.stop)
    left = change.left[low - update.start : high - update.start]
    path = update.module.path
    return path, add_update(rows[low - piece.start : high - piece.start], left, change.right, path)


@contextmanager
def _threads(count: int) -> Iterator[Executor]:
    """Yield a pool of threads; if the block fails, work that has not begun is left out."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="merge")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    workers: Executor, function: Callable[[_Piece], _Written], pieces: Iterable[_Piece]
) -> Iterator[_Written]:
    """Yield the result of ``function`` for every piece, in order; only a few pieces wait for a thread at any time."""
    waiting: deque[Future[_Written]] = deque()
    for piece in pieces:
        waiting.append(workers.submit(function, piece))
        if len(waiting) > 2 * MAX_THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)
