"""Compares the numbers of a weight in a graph with those of the base: equal in float32, close in types with fewer digits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["FLOATING_TYPES", "QUANTIZED_SUFFIXES", "equals_in_type", "holds_quantized", "occurrences"]

AnyArray = npt.NDArray[Any]

FLOATING_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
"""Types of weights that are not quantized."""
QUANTIZED_SUFFIXES = ("_Transposed_quantized", "_quantized", "_Q4", "_Q8", "_Q4G32")
"""Suffixes that quantizers append to the name of a weight."""

_PROBE = 8
"""How many elements are compared first: enough to rule out nearly every wrong slice."""
_HALF_ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Type → distance of neighboring numbers, relative to their size."""
_HALF_SMALLEST = 2.0**-23
"""Converters replace float16's values below its smallest, 6e-8, by zero or by the smallest."""
_STEPS = 1.02
"""A quantized value is at most half a step off, and up to one more half where the zero point was rounded."""


def equals_in_type(stored: AnyArray, expected: AnyArray) -> bool:
    """Return True if ``stored`` holds ``expected``, as far as the type of ``stored`` can hold it.

    Converters to half precision do not agree on rounding or on tiny values, so there the last digit is left open.
    """
    if stored.shape != expected.shape:
        return False
    rounding = _HALF_ROUNDING.get(stored.dtype.name)
    if rounding is None:
        return bool(np.array_equal(stored, expected.astype(stored.dtype)))
    left, right = stored.astype(np.float32), expected.astype(np.float32)
    return bool(np.allclose(left, right, rtol=rounding, atol=_HALF_SMALLEST))


def occurrences(
    kind: Literal["linear", "embedding", "conv", "vector"], stored: AnyArray, expected: AnyArray
) -> Iterator[tuple[bool, int]]:
    """Yield (transposed, first output) of every occurrence of ``expected`` in ``stored``.

    Args:
        kind: of the weight; a linear one may be transposed, and a slice of ``stored``.
        stored: a weight of the graph.
        expected: the base's weight, outputs first, in any floating-point type.
    """
    if kind != "linear":
        if equals_in_type(stored, expected):
            yield False, 0
        return
    if stored.ndim != 2:
        return
    fan_out, fan_in = expected.shape
    for transposed, view in ((False, stored), (True, stored.T)):  # rows are outputs
        if view.shape[1] != fan_in or view.shape[0] < fan_out:
            continue
        for start in _starts(view[: view.shape[0] - fan_out + 1, 0], expected[0, 0]):
            part = view[start : start + fan_out]
            if equals_in_type(part[0, :_PROBE], expected[0, :_PROBE]) and equals_in_type(part, expected):
                yield transposed, int(start)
                if part.size == stored.size:
                    return  # a symmetric matrix would match in both orientations


def _starts(column: AnyArray, first: AnyArray) -> AnyArray:
    """Return the indices at which ``column`` holds ``first``."""
    rounding = _HALF_ROUNDING.get(column.dtype.name)
    if rounding is None:
        return np.flatnonzero(column == first.astype(column.dtype))
    near = np.isclose(column.astype(np.float32), first.astype(np.float32), rtol=rounding, atol=_HALF_SMALLEST)
    return np.flatnonzero(near)


def holds_quantized(name: str, initializers: Mapping[str, ir.Value], expected: AnyArray) -> bool:
    """Return True if the 8-bit weight ``name [in, out]`` is ``expected [out, in]``, within a step of its quantization.

    The scale and the zero point are those that onnxruntime's quantizer puts next to it under the same name.
    """
    suffix = next((suffix for suffix in ("_quantized",) if name.endswith(suffix)), None)
    stem = name.removesuffix(suffix) if suffix else ""
    scale, zero = (_content(initializers.get(f"{stem}_{part}")) for part in ("scale", "zero_point"))
    stored = _content(initializers.get(name))
    if scale is None or zero is None or stored is None or stored.shape != expected.shape[::-1]:
        return False
    step = scale.astype(np.float32)  # one, or one per output
    restored = (stored.astype(np.float32) - zero.astype(np.float32)) * step
    return bool((np.abs(restored - expected.T.astype(np.float32)) <= _STEPS * np.abs(step)).all())


def _content(value: ir.Value | None) -> AnyArray | None:
    return np.asarray(value.const_value.numpy()) if value is not None and value.const_value is not None else None
