"""Rounding 4-bit weights by the inputs of their products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from rmlora_converters.graph.locate.block_quantized import BlockQuantized
from rmlora_converters.second_order_rounding import round_to_grids
from tests.helpers.block_graphs import float_graph, in_blocks

OUT, IN = 48, 72
"""The inputs are no multiple of a block's 32."""


def inputs(rng: np.random.Generator) -> np.ndarray:
    """Return inputs ``[512, IN]`` that go together."""
    return (rng.normal(size=(512, 12)) @ rng.normal(size=(12, IN)) + 0.1 * rng.normal(size=(512, IN))).astype(
        np.float32
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_products_come_out_closer_and_the_grids_stay(symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(OUT, IN)).astype(np.float32), inputs(rng)
    model = in_blocks(float_graph({"w": np.ascontiguousarray(weight.T)}), 4, symmetric=symmetric)
    node = next(node for node in model.graph if node.op_type == "MatMulNBits")
    stored = BlockQuantized.of(node.inputs[1])  # type: ignore[arg-type]
    assert stored is not None
    before = stored.restored(slice(0, OUT))
    grids = [
        np.array(value.const_value.numpy()) for value in node.inputs[2:] if value is not None and value.const_value
    ]
    stored.round_again(slice(8, OUT), weight[8:], x.T @ x)
    after = stored.restored(slice(0, OUT))
    np.testing.assert_array_equal(after[:8], before[:8])
    error, was = (np.linalg.norm(x @ (found - weight)[8:].T) for found in (after, before))
    assert error < 0.5 * was
    for value, grid in zip([value for value in node.inputs[2:] if value is not None], grids, strict=True):
        np.testing.assert_array_equal(ir.convenience.get_const_tensor(value).numpy(), grid)  # type: ignore[union-attr]


def test_inputs_that_have_nothing_to_do_with_each_other_take_the_nearest_points() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(OUT, IN)).astype(np.float32)
    scales, zeros = np.full((OUT, IN), 0.3, np.float32), np.full((OUT, IN), 7, np.float32)
    moments = np.diag(rng.uniform(1, 9, IN)).astype(np.float32)
    moments[5, 5] = 0  # an input that was never seen
    points = round_to_grids(weight, scales, zeros, moments, highest=15)
    np.testing.assert_array_equal(points, np.clip(np.round(weight / 0.3) + 7, 0, 15))


def test_blocks_of_zeros_stay_zero() -> None:
    rng = np.random.default_rng(0)
    weight, x = np.zeros((OUT, IN), np.float32), inputs(rng)
    points = round_to_grids(weight, np.zeros_like(weight), np.full_like(weight, 8), x.T @ x, highest=15)
    assert (points == 8).all()
