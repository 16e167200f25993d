"""Fused attention is opened only where its parts compute the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from rmlora_converters.graph.passes.open_attention import open_attention, open_attention_per_projection


@pytest.mark.parametrize("open_all", [open_attention, open_attention_per_projection])
@pytest.mark.parametrize("rotary", [0, 1])
def test_attention_with_rotary_positions_stays(rotary: int, open_all: Callable[[ir.Model], int]) -> None:
    arrays = {"w": np.zeros((8, 24), np.float32), "b": np.zeros(24, np.float32)}
    weights = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()]
    x = ir.Value(name="x", shape=ir.Shape(["batch", "n", 8]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Attention", [x, *weights], {"num_heads": 2, "do_rotary": rotary}, domain="com.microsoft", name="a")
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=weights, opset_imports={"": 20, "com.microsoft": 1})
    assert open_all(ir.Model(graph, ir_version=10)) == 1 - rotary
