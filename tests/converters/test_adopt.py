"""A graph from another exporter gets the form that the other passes expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from rmlora.adapter import Adapter, LoraModule
from rmlora_converters.graph.passes.merge_weights import merge_graph
from rmlora_deploy.runtime.providers import create_session

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
