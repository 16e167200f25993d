"""Adding an update in blocks gives the same bits as the plain formula, in every type, and measures what rounding lost."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import rmlora_converters.block_sum as block_sum
from rmlora.errors import AdapterError
from rmlora_converters.block_sum import add_update, square_sum
from rmlora_converters.half_precision import narrow_to_half, widen_half

TYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}

ANY_FLOAT32 = hnp.arrays(np.uint32, st.integers(1, 300), elements=st.integers(0, 2**32 - 1)).map(
    lambda bits: bits.view(np.float32)
)
"""Every kind of float32: normal, subnormal, infinite, NaN, of both signs."""


def same_bits(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    """Compare bits; any NaN equals any other."""
    both = np.isnan(left.astype(np.float32)) & np.isnan(right.astype(np.float32))
    bits = [array.view(f"u{array.itemsize}") for array in (left, right)]
    return bool(np.all((bits[0] == bits[1]) | both))


def plain(stored: npt.NDArray[Any], delta: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    exact_type = np.float64 if stored.dtype == np.float64 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        exact: npt.NDArray[Any] = stored.astype(exact_type) + delta
        return exact.astype(stored.dtype)


def test_every_float16_is_widened_as_numpy_does() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    wide = np.empty(halves.shape, np.float32)
    widen_half(halves, wide)
    assert same_bits(wide, halves.astype(np.float32))


def rounded_to_half(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    halves, wide = np.empty(values.shape, np.float16), np.empty(values.shape, np.float32)
    narrow_to_half(values, halves, wide)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    assert same_bits(halves, expected)
    np.testing.assert_array_equal(wide, expected.astype(np.float32))
    return halves


def test_every_float16_and_what_is_halfway_to_the_next_is_rounded_as_numpy_does() -> None:
    halves = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    after = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves + after) / 2
    for values in (halves, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))):
        rounded_to_half(values)
        rounded_to_half(-values)
    rounded_to_half(np.array([65504, 65519.996, 65520, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 0, -0.0], np.float32))


@given(values=ANY_FLOAT32)
def test_any_float32_is_rounded_to_float16_as_numpy_does(values: npt.NDArray[np.float32]) -> None:
    rounded_to_half(values)
    rounded_to_half(np.clip(np.nan_to_num(values), -60000, 60000))


@pytest.mark.parametrize("dtype", TYPES)
@given(values=ANY_FLOAT32, deltas=ANY_FLOAT32)
def test_the_sum_has_the_bits_of_the_plain_formula_or_is_refused(
    dtype: str, values: npt.NDArray[np.float32], deltas: npt.NDArray[np.float32]
) -> None:
    size = min(len(values), len(deltas))
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values[:size].astype(TYPES[dtype]).reshape(size, 1)
    left, right = deltas[:size].reshape(size, 1), np.ones((1, 1), np.float32)
    expected = plain(stored, left)
    if np.isfinite(expected.astype(np.float64)).all():
        add_update(stored, left, right, "layer")
        assert same_bits(stored, expected)
    else:
        with pytest.raises(AdapterError, match=f"Merging 'layer' gives values that {dtype} cannot hold"):
            add_update(stored, left, right, "layer")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("elements", [1, 64, 1 << 18])
def test_blocks_make_no_difference_and_the_sums_are_those_of_the_whole(
    dtype: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_sum, "BLOCK_ELEMENTS", elements)
    rng = np.random.default_rng(3)
    stored = (rng.standard_normal((37, 3, 11)) * 0.02).astype(TYPES[dtype])
    left, right = rng.standard_normal((37, 2), np.float32) * 0.05, rng.standard_normal((2, 33), np.float32) * 0.05
    delta = (left @ right).reshape(stored.shape)
    weight = stored.astype(np.float64)
    merged = stored.copy()
    sums = add_update(merged, left, right, "layer")
    exact = weight + delta
    loss = np.linalg.norm(merged.astype(np.float64) - exact) / np.linalg.norm(delta)
    assert math.sqrt(sums.error / sums.delta) == pytest.approx(loss, rel=1e-3, abs=1e-6)
    assert sums.delta == pytest.approx(np.square(delta, dtype=np.float64).sum(), rel=1e-5)
    assert sums.weight == pytest.approx(np.square(weight).sum(), rel=1e-5)
    unit = 8 * float(ml_dtypes.finfo(stored.dtype).eps)
    np.testing.assert_allclose(merged.astype(np.float64), exact, rtol=max(unit, 1e-5), atol=1e-6)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_000])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-42, 0.0])
def test_sums_of_squares_hold_where_a_square_leaves_float32(size: int, scale: float) -> None:
    values = (np.random.default_rng(size).standard_normal(size) * scale).astype(np.float32)
    assert square_sum(values) == pytest.approx(np.square(values, dtype=np.float64).sum(), rel=1e-5)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_base_with_a_value_that_is_not_finite_is_refused(dtype: str, value: float) -> None:
    stored = np.zeros((3, 5000), TYPES[dtype])
    stored[1, 4999] = value
    with pytest.raises(AdapterError, match=f"{dtype} cannot hold"):
        add_update(stored, np.zeros((3, 1), np.float32), np.zeros((1, 5000), np.float32), "layer")
