"""Weights are found by content, packed and transposed ones too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rmlora_converters.graph.locate.weights import WeightQuery, find_weights


def test_weights_are_found_in_packed_and_transposed_ones() -> None:
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 8, 8)).astype(np.float32)
    packed = ir.Value(name="packed", const_value=ir.tensor(np.concatenate([query, key]).T.copy(), name="packed"))
    x = ir.Value(name="x", shape=ir.Shape([1, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("MatMul", [x, packed])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[packed], opset_imports={"": 20})
    base = type("Base", (), {"tensors": {}, "config": {}})()
    for name, weight in (("q.weight", query), ("k.weight", key)):
        base.tensors[name] = type("Info", (), {"read": lambda self, weight=weight: weight})()
    queries = [WeightQuery("q.weight", "linear", (8, 8)), WeightQuery("k.weight", "linear", (8, 8))]
    found = find_weights(ir.Model(graph, ir_version=10), queries, base).values()
    assert {(location.parameter, location.transposed, location.start, location.stop) for location in found} == {
        ("q.weight", True, 0, 8),
        ("k.weight", True, 8, 16),
    }
