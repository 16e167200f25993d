"""Weights are found by content, packed and transposed ones too; what an update would change besides is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora_converters.graph.locate.weights import WeightQuery, find_weights, query_of_parameter


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


def shared_bias(directory: Path, biases: dict[str, np.ndarray]) -> tuple[ir.Model, Checkpoint]:
    """Return a graph with a bias that two modules share, as exporters store equal ones, and a base with ``biases``."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in ("q.weight", "k.weight")}
    arrays = {**weights, "q.bias": np.zeros(8, np.float32)}
    values = {name: ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()}
    x = ir.Value(name="x", shape=ir.Shape([1, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = [ir.node("Gemm", [x, values["q.weight"], values["q.bias"]])]
    nodes.append(ir.node("Gemm", [nodes[0].outputs[0], values["k.weight"], values["q.bias"]]))
    graph = ir.Graph([x], nodes[1].outputs, nodes=nodes, initializers=[*values.values()], opset_imports={"": 20})
    save_file({**weights, **biases}, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    return ir.Model(graph, ir_version=10), Checkpoint(directory)


def test_a_bias_that_an_exporter_stored_once_for_several_modules_is_refused(tmp_path: Path) -> None:
    zeros = np.zeros(8, np.float32)
    query = query_of_parameter("q.bias", (8,))
    model, base = shared_bias(tmp_path, {"q.bias": zeros, "k.bias": zeros})
    for known in (base, None):
        with pytest.raises(AdapterError, match=r"'q.bias' of the graph, which modules with equal weights share"):
            find_weights(model, [query], known)
    model, base = shared_bias(tmp_path, {"q.bias": zeros})  # as in ALBERT: one module, called twice
    assert find_weights(model, [query], base)["q.bias"].initializer == "q.bias"


@pytest.mark.parametrize("flipped", [False, True])
def test_the_orientation_of_a_square_weight_is_that_of_its_product(flipped: bool) -> None:
    weight = ir.Value(name="q.weight", const_value=ir.tensor(np.zeros((8, 8), np.float32), name="q.weight"))
    x = ir.Value(name="x", shape=ir.Shape([1, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("FusedMatMul", [x, weight], {"transB": int(flipped)}, domain="com.microsoft")
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20})
    found = find_weights(ir.Model(graph, ir_version=10), [WeightQuery("q.weight", "linear", (8, 8))], None)
    assert found["q.weight"].transposed is not flipped
