"""Another head takes the place of the base's with its bias, in whatever form the graph holds that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from rmlora.adapter import Adapter, LoraModule
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.locate.targets import find_targets
from rmlora_converters.graph.locate.weights import find_weights, query_of_parameter
from rmlora_converters.graph.passes.base_head import base_head
from rmlora_converters.graph.passes.insert_branches import insert_branches
from rmlora_converters.graph.passes.replace_head import replace_head
from rmlora_deploy.runtime.providers import create_session

WIDTH, LABELS = 8, 3
FLOAT = np.dtype(np.float32)
FORMS = {
    "addition": "p = MatMul(h, classifier_weight) logits = Add(p, classifier_bias)",
    "behind an axis": "p = MatMul(h, classifier_weight) logits = Add(classifier_bias, p)",
    "passed on": "c = Identity(classifier_bias) p = MatMul(h, classifier_weight) logits = Add(p, c)",
    "cast": "w = Cast<to=1>(classifier_weight) c = Cast<to=1>(classifier_bias) p = MatMul(h, w) logits = Add(c, p)",
    "cast to the name": "classifier_bias = Cast<to=1>(c) p = MatMul(h, classifier_weight) logits = Add(p, classifier_bias)",
}
"""Name → the head of a graph, from the hidden states ``h [batch, n, WIDTH]`` to the scores of tokens; ``_`` stands for a point."""


def written(form: str, path: Path) -> Path:
    """Write a graph with a module and the head ``form``."""
    rng = np.random.default_rng(0)
    arrays = {"dense.weight": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)}
    arrays["classifier.weight"] = rng.normal(size=(WIDTH, LABELS)).astype(np.float16 if form == "cast" else np.float32)
    bias = rng.normal(size=(1, 1, LABELS) if form == "behind an axis" else LABELS)
    name = "c" if form == "cast to the name" else "classifier.bias"
    arrays[name] = bias.astype(np.float16 if "cast" in form else np.float32)
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[batch, n, 8] x) => (float[batch, n, 3] logits) { '
        f"h = MatMul(x, dense_weight) {FORMS[form]} }}"
    )
    for node in model.graph.node:
        node.input[:], node.output[:] = (
            [name.replace("_", ".") for name in names] for names in (node.input, node.output)
        )
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, path)
    return path


def run(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(create_session(path).run(None, feeds)[0])


def hidden(x: np.ndarray) -> np.ndarray:
    return x @ np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_the_bias_goes_with_the_head(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((5, WIDTH), (5,)))
    x = rng.normal(size=(2, 4, WIDTH)).astype(np.float32)
    model = load_model(written(form, tmp_path / "model.onnx"))
    found = find_weights(model, [query_of_parameter("classifier.weight", (LABELS, WIDTH))], None)
    replace_head(model.graph, found["classifier.weight"], weight, bias)
    save_model(model, tmp_path / "merged.onnx")
    got = run(tmp_path / "merged.onnx", {"x": x})
    np.testing.assert_allclose(got, hidden(x) @ weight.T + bias, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_the_bias_goes_with_the_base_where_a_row_has_its_own_head(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((5, WIDTH), (5,)))
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, WIDTH), (WIDTH, 2)))
    adapter = Adapter(
        {"dense": LoraModule("dense", "linear", a, b, 1.0)},
        modules_to_save={"classifier.weight": weight, "classifier.bias": bias},
    )
    x = rng.normal(size=(2, 4, WIDTH)).astype(np.float32)
    base = run(written(form, tmp_path / "model.onnx"), {"x": x})
    model = load_model(tmp_path / "model.onnx")
    inputs = insert_branches(model, find_targets(model, [adapter], None), base_weights={})
    save_model(model, tmp_path / "branches.onnx")
    arrays = adapter_arrays(adapter, inputs, dict.fromkeys(inputs.names, FLOAT))
    got = run(tmp_path / "branches.onnx", {"x": x, **arrays})
    np.testing.assert_allclose(got, (hidden(x) + x @ a.T @ b.T) @ weight.T + bias, rtol=1e-4, atol=1e-4)
    own = base_head(load_model(tmp_path / "branches.onnx"), inputs.heads[0])
    assert own is not None
    np.testing.assert_array_equal(run(tmp_path / "branches.onnx", {"x": x}), base)
    np.testing.assert_allclose(run(tmp_path / "branches.onnx", {"x": x, **own}), base, rtol=1e-5, atol=1e-5)
