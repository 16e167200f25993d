"""An embedding and an output layer that share their weight in a graph are merged as PEFT computes them: one of the two changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from safetensors.numpy import save_file

from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora_converters.graph.passes.merge_weights import merge_graph
from rmlora_deploy.runtime.providers import create_session

TOKENS, WIDTH = 12, 8
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(TOKENS, WIDTH)).astype(np.float32)
A, B = RNG.normal(size=(2, TOKENS)).astype(np.float32), RNG.normal(size=(WIDTH, 2)).astype(np.float32)
NEW = RNG.normal(size=(TOKENS, WIDTH)).astype(np.float32)
IDS = np.arange(6).reshape(2, 3)
EMBEDDING, LAYER = "model.embed_tokens", "lm_head"
DENSE = RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32)
TIED = "e = Gather(w, ids) h = MatMul(e, dense) t = Transpose<perm=[1,0]>(w) logits = MatMul(h, t)"
UNTIED = "e = Gather(w, ids) logits = MatMul(e, dense)"


def written(nodes: str, name: str, directory: Path) -> Path:
    """Write a graph with the weight ``name``, and a base whose layers share it."""
    text = (
        f'<ir_version: 9, opset_import: ["" : 20]> g (int64[batch, n] ids) => (float[batch, n, k] logits) {{ {nodes} }}'
    )
    model = parser.parse_model(text)
    for node in model.graph.node:
        node.input[:] = [{"w": name, "dense": "dense.weight"}.get(item, item) for item in node.input]
    weights = {name: WEIGHT, "dense.weight": DENSE}
    model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
    directory.mkdir()
    onnx.save(model, directory / "model.onnx")
    (directory / "base").mkdir()
    stored = {f"{EMBEDDING}.weight": WEIGHT, "dense.weight": np.ascontiguousarray(DENSE.T)}
    save_file(stored, directory / "base" / "model.safetensors")
    (directory / "base" / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    return directory / "model.onnx"


def merged(graph: Path, adapter: Adapter, *, base: bool) -> np.ndarray:
    checkpoint = Checkpoint(graph.parent / "base") if base else None
    merge_graph(graph, adapter, graph.parent / "merged", base=checkpoint)
    return np.asarray(create_session(graph.parent / "merged" / "model.onnx").run(None, {"ids": IDS})[0])


@pytest.mark.parametrize("name", [f"{EMBEDDING}.weight", f"{LAYER}.weight", "onnx::Gather_7"])
def test_an_update_changes_one_of_the_two(name: str, tmp_path: Path) -> None:
    embedding = Adapter({EMBEDDING: LoraModule(EMBEDDING, "embedding", A, B, 0.5)})
    layer = Adapter({LAYER: LoraModule(LAYER, "linear", B.T.copy(), A.T.copy(), 0.5)})
    changed = WEIGHT + 0.5 * (B @ A).T
    for adapter, looked_up, multiplied in ((embedding, changed, WEIGHT), (layer, WEIGHT, changed)):
        graph = written(TIED, name, tmp_path / next(iter(adapter.modules)))
        got = merged(graph, adapter, base=next(iter(adapter.modules)) not in name)
        np.testing.assert_allclose(got, looked_up[IDS] @ DENSE @ multiplied.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_that_was_saved_whole(base: bool, tied: bool, tmp_path: Path) -> None:
    graph = written(TIED if tied else UNTIED, f"{EMBEDDING}.weight", tmp_path / "graph")
    a, b = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, WIDTH), (WIDTH, 2)))
    dense = LoraModule("dense", "linear", a, b, 0.5)
    got = merged(graph, Adapter({"dense": dense}, modules_to_save={f"{EMBEDDING}.weight": NEW}), base=base)
    hidden = NEW[IDS] @ (DENSE + 0.5 * (b @ a).T)
    np.testing.assert_allclose(got, hidden @ WEIGHT.T if tied else hidden, rtol=1e-4, atol=1e-4)


def test_a_weight_that_both_read_through_one_cast_is_refused(tmp_path: Path) -> None:
    nodes = (
        "c = Cast<to=1>(w) e = Gather(c, ids) h = MatMul(e, dense) t = Transpose<perm=[1,0]>(c) logits = MatMul(h, t)"
    )
    graph = written(nodes, f"{EMBEDDING}.weight", tmp_path / "graph")
    adapter = Adapter({EMBEDDING: LoraModule(EMBEDDING, "embedding", A, B, 0.5)})
    with pytest.raises(AdapterError, match="looked up and multiplied by after the same operator"):
        merged(graph, adapter, base=False)
