"""The arithmetic of every merge: adds an update to rows of a stored weight, in place and in blocks that stay in the cache.

    W ← cast(float32(W) + left · right)

A merge reads and writes each byte once, so it is bound by memory unless everything between stays in the processor's cache. A
block is therefore widened, summed, rounded and measured before the next one is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from rmlora.errors import AdapterError
from rmlora.tensors import DTYPES
from rmlora_converters.half_precision import narrow_to_half, widen_half

__all__ = ["SquareSums", "add_update", "one_blas_thread", "overflow_error", "square_sum"]

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block. Weight and update are 1 MiB each in float32: they stay in a processor's cache, and Python's own work is
small beside the arithmetic."""

_DOT_ELEMENTS = 4096
"""Squares summed in float32 before float64 takes over; also few enough that no BLAS starts threads for them."""

AnyArray = npt.NDArray[Any]


class SquareSums(NamedTuple):
    """Sums of squares over rows of one module: what :mod:`rmlora_converters.rounding` needs."""

    error: float
    """Of ``cast(W + Δ) - (W + Δ)``."""
    delta: float
    weight: float


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Have BLAS compute in the thread that calls it; put this around :func:`add_update`, once for all threads.

    The threads that BLAS starts wait for each other at every product. With blocks of this size, and other programs on the
    machine, that took 20 times as long as the product itself.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def add_update(stored: AnyArray, left: AnyArray, right: AnyArray, name: str) -> SquareSums:
    """Add ``left @ right`` to the rows ``stored``, in place.

    The sum is computed in float32, or in float64 if that is the stored type, and rounded to nearest, ties to even.

    Args:
        stored: ``[rows, …]``, writable and contiguous, of a floating type.
        left: ``[rows, rank]`` float32.
        right: ``[rank, elements of a row]`` float32.
        name: of the module, for the error message.

    Raises:
        AdapterError: a sum is not finite in the stored type.
    """
    rows = stored.reshape(len(stored), -1)
    step = max(1, BLOCK_ELEMENTS // max(1, rows.shape[1]))
    sums = []
    if not rows.size:
        return SquareSums(0.0, 0.0, 0.0)
    exact_type = np.float64 if stored.dtype == np.float64 else np.float32
    weights = np.empty((min(step, len(rows)), rows.shape[1]), exact_type)
    deltas = np.empty(weights.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            weight, delta = weights[: len(block)], deltas[: len(block)]
            np.matmul(left[start : start + step], right, out=delta)
            _widen(block, weight)
            weight_sum, delta_sum = square_sum(weight), square_sum(delta)
            np.add(weight, delta, out=weight)
            error_sum = _round(weight, block, delta)
            if not math.isfinite(error_sum):
                raise overflow_error(name, stored.dtype)
            sums.append((error_sum, delta_sum, weight_sum))
    return SquareSums(*map(sum, zip(*sums, strict=True)))


def overflow_error(name: str, dtype: np.dtype[Any]) -> AdapterError:
    """Return the error for a sum that ``dtype`` cannot hold."""
    kind = next((key for key, value in DTYPES.items() if value == dtype), str(dtype))
    return AdapterError(
        f"Merging '{name}' gives values that {kind} cannot hold (infinity or NaN): the update is broken or too large "
        "for this base's type; merge into a float32 base."
    )


def square_sum(values: AnyArray) -> float:
    """Return the sum of squares, as exact as float32 sums of 4,096 squares are; not finite if a value is not."""
    flat = values.reshape(-1)
    if flat.dtype == np.float32:
        whole = flat.size - flat.size % _DOT_ELEMENTS
        pieces = flat[:whole].reshape(-1, 1, _DOT_ELEMENTS)
        with np.errstate(over="ignore", invalid="ignore"):
            total = float(np.matmul(pieces, pieces.reshape(-1, _DOT_ELEMENTS, 1)).sum(dtype=np.float64))
        rest = flat[whole:]
        total += float(np.square(rest, dtype=np.float64).sum())
        if math.isfinite(total) and total > 1e-30 * flat.size:  # otherwise a square may have left float32's range
            return total
    return float(np.square(flat, dtype=np.float64).sum())


def _widen(block: AnyArray, out: AnyArray) -> None:
    if block.dtype == np.float16:
        widen_half(block, out)
    else:
        np.copyto(out, block)


def _round(exact: AnyArray, out: AnyArray, scratch: AnyArray) -> float:
    """Round ``exact`` to ``out`` and return the sum of squared errors, which is not finite if a result is not."""
    if out.dtype == exact.dtype:
        np.copyto(out, exact)
        return 0.0 if math.isfinite(square_sum(exact)) else math.inf
    if out.dtype == np.float16:
        narrow_to_half(exact, out, scratch)
    else:
        np.copyto(out, exact, casting="unsafe")
        np.copyto(scratch, out)
    np.subtract(scratch, exact, out=scratch)
    return square_sum(scratch)
