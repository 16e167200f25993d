"""A graph from another exporter gets the form that the other passes expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from rmlora.adapter import Adapter, LoraModule
from rmlora.errors import AdapterError, InputError
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.locate.targets import find_targets
from rmlora_converters.graph.passes.adopt import adopt_graph
from rmlora_converters.graph.passes.insert_branches import insert_branches
from rmlora_converters.graph.passes.merge_weights import merge_graph
from rmlora_converters.graph.passes.quantize_products import quantize_products
from rmlora_deploy.runtime.providers import create_session
from tests.helpers.block_graphs import float_graph

WIDTH = 8
RNG = np.random.default_rng(0)


def test_biases_that_an_exporter_stored_once_are_merged_apart(tmp_path: Path) -> None:
    """As torch's older exporter stores biases of zeros."""
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[batch, n, 8] x) => (float[batch, n, 8] y) { '
        "k_bias = Identity(q_bias) p = MatMul(x, q) h = Add(q_bias, p) r = MatMul(h, k) y = Add(k_bias, r) }"
    )
    names = {"q_bias": "q.bias", "k_bias": "k.bias", "q": "q.weight", "k": "k.weight"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    weights = {name: RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32) for name in ("q.weight", "k.weight")}
    arrays = {**weights, "q.bias": np.zeros(WIDTH, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, tmp_path / "model.onnx")
    a, b = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, WIDTH), (WIDTH, 2)))
    biases = {name: RNG.normal(size=WIDTH).astype(np.float32) for name in ("q.bias", "k.bias")}
    x = RNG.normal(size=(2, 3, WIDTH)).astype(np.float32)
    update = LoraModule("q", "linear", a, b, 1.0)
    for saved in (biases, {"q.bias": biases["q.bias"]}):
        merge_graph(tmp_path / "model.onnx", Adapter({"q": update}, saved), tmp_path / "merged", overwrite=True)
        got = create_session(tmp_path / "merged" / "model.onnx").run(None, {"x": x})[0]
        first = x @ (weights["q.weight"] + (b @ a).T) + biases["q.bias"]
        expected = first @ weights["k.weight"] + saved.get("k.bias", np.zeros(WIDTH))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


WIDE = 40_000
"""Outputs of a weight that does not fit into the file of its graph."""


def branching(path: Path) -> dict[str, np.ndarray]:
    """Write a graph with two weights in a file of their own, one of them of a branch of an ``If``; return the weights."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 8] x, bool use) => (float[batch, n] y) { '
        "y = If (use) <then_branch = t () => (float[batch, n] a) { a = MatMul(x, inner) }, "
        "else_branch = e () => (float[batch, n] b) { b = MatMul(x, outer) }> }"
    )
    weights = {name: RNG.normal(size=(WIDTH, WIDE)).astype(np.float32) for name in ("inner.weight", "outer.weight")}
    branches = [attribute.g for attribute in model.graph.node[0].attribute]
    for graph, holder, (name, array) in zip(branches, (branches[0], model.graph), weights.items(), strict=True):
        graph.node[0].input[1] = name
        holder.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin")
    return weights


def updates(*paths: str) -> Adapter:
    """Return an adapter of modules with ``WIDE`` outputs."""
    shapes = (2, WIDTH), (WIDE, 2)
    return Adapter(
        {
            path: LoraModule(path, "linear", *(RNG.normal(size=shape).astype(np.float32) for shape in shapes), 1.0)
            for path in paths
        }
    )


def test_weights_of_control_flow_are_merged(tmp_path: Path) -> None:
    weights = branching(tmp_path / "model.onnx")
    adapter = updates("inner", "outer")
    merge_graph(tmp_path / "model.onnx", adapter, tmp_path / "merged")
    session = create_session(tmp_path / "merged" / "model.onnx")
    x = RNG.normal(size=(2, WIDTH)).astype(np.float32)
    for path, use in (("inner", True), ("outer", False)):
        module = adapter.modules[path]
        expected = x @ (weights[f"{path}.weight"] + (module.lora_B @ module.lora_A).T)
        got = session.run(None, {"x": x, "use": np.array(use)})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_branches_in_control_flow_are_refused(tmp_path: Path) -> None:
    branching(tmp_path / "model.onnx")
    model = load_model(tmp_path / "model.onnx")
    adopt_graph(model, source="model.onnx")
    with pytest.raises(
        AdapterError, match=r"'outer.weight' is used inside an If or a Loop \('.*'\), to which no branch"
    ):
        insert_branches(model, find_targets(model, [updates("outer")], None), base_weights={})


def test_nodes_without_names_are_rounded(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[batch, 8] x) => (float[batch, 8] y) { '
        "p = MatMul(x, v) q = com.microsoft.BiasGelu(p, b) r = MatMul(q, w) y = com.microsoft.BiasGelu(r, b) }"
    )
    shapes = {"v": (WIDTH, WIDTH), "w": (WIDTH, WIDTH), "b": (WIDTH,)}
    arrays = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, tmp_path / "model.onnx")
    x = RNG.normal(size=(2, WIDTH)).astype(np.float32)
    expected = create_session(tmp_path / "model.onnx").run(None, {"x": x})[0]
    adopted = load_model(tmp_path / "model.onnx")
    adopt_graph(adopted, source="model.onnx")
    assert quantize_products(adopted) == 2
    save_model(adopted, tmp_path / "int8.onnx")
    got = create_session(tmp_path / "int8.onnx").run(None, {"x": x})[0]
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_a_graph_with_branches_is_refused(tmp_path: Path) -> None:
    model = float_graph({"q": RNG.normal(size=(WIDTH, WIDE)).astype(np.float32)})
    insert_branches(model, find_targets(model, [updates("q")], None), base_weights={})
    save_model(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="model.onnx has branches already: give the graph of the base alone"):
        adopt_graph(load_model(tmp_path / "model.onnx"), source="model.onnx")


def test_what_a_condition_passes_on_has_the_batch(tmp_path: Path) -> None:
    """As torch's older exporter writes ``squeeze`` for an axis of unknown size."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, n, 8] x) => (float[batch, 8] y) { '
        "f = Slice(x, zero, one, one) s = Shape(f) k = Gather(s, first) c = Equal(k, first) "
        "h = If (c) <then_branch = t () => (float[batch, 8] a) { a = Squeeze(f, one) }, "
        "else_branch = e () => (float[batch, 8] b) { b = Identity(f) }> y = MatMul(h, w) }"
    )
    model.graph.node[-1].input[1] = "w.weight"
    weight = RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    arrays = {"w.weight": weight, "zero": np.array([0]), "one": np.array([1]), "first": np.array(1)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, tmp_path / "model.onnx")
    adopted = load_model(tmp_path / "model.onnx")
    adopt_graph(adopted, source="model.onnx")
    a, b = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, WIDTH), (WIDTH, 2)))
    adapter = Adapter({"w": LoraModule("w", "linear", a, b, 1.0)})
    inputs = insert_branches(adopted, find_targets(adopted, [adapter], None), base_weights={})
    save_model(adopted, tmp_path / "branches.onnx")
    x = RNG.normal(size=(2, 3, WIDTH)).astype(np.float32)
    factors = adapter_arrays(adapter, inputs, dict.fromkeys(inputs.names, np.dtype(np.float32)))
    mixed = {name: np.concatenate([array, 0 * array]) for name, array in factors.items()}  # the second row has none
    got = create_session(tmp_path / "branches.onnx").run(None, {"x": x, **mixed})[0]
    np.testing.assert_allclose(got, x[:, 0] @ weight + [[1], [0]] * (x[:, 0] @ a.T @ b.T), rtol=1e-4, atol=1e-4)
