"""A graph with a merged adapter computes what PEFT computes, whatever the exporter did to names and layouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.package import load_package
from rmlora.tasks import get_task
from rmlora.torch_models import load_adapted
from rmlora_converters.graph.files.model_file import save_model
from rmlora_converters.graph.passes.merge_weights import merge_graph
from rmlora_converters.side_files import PROVENANCE_FILE
from rmlora_deploy.exporter.optimize import optimize
from rmlora_deploy.exporter.torch_export import export_torch
from rmlora_deploy.exporter.trace_inputs import trace_inputs
from rmlora_deploy.runtime.providers import create_session
from tests.helpers.branch_graphs import LABELS, make_adapter, make_base
from tests.helpers.bundles import make_sources
from tests.helpers.cli import fails, run
from tests.helpers.exports import anonymous, export, with_bias
from tests.helpers.models import ARCHITECTURES, build, output, save_base

NAMES = ["bert", "gpt2", "llama", "vit"]


def sources(name: str, directory: Path) -> tuple[Path, Path]:
    """Save a base and an adapter, create a directory for the graph, and return the first two."""
    base, adapter = make_sources(name, directory)
    save_base(with_bias(name), base)
    (directory / "onnx").mkdir()
    return base, adapter


def expected_logits(name: str, adapter: Path) -> np.ndarray:
    from peft import PeftModel

    model = PeftModel.from_pretrained(build(name), adapter).eval()
    return output(model, ARCHITECTURES[name].inputs()).numpy()


def logits(path: Path, name: str) -> np.ndarray:
    session = create_session(path)
    names = {item.name for item in session.get_inputs()}
    inputs = {key: value.numpy() for key, value in ARCHITECTURES[name].inputs().items() if key in names}
    return np.asarray(session.run(None, inputs)[0])


@pytest.mark.parametrize("form", ["plain", "optimized", "anonymous"])
@pytest.mark.parametrize("name", NAMES)
def test_the_merged_graph_is_pefts_model(name: str, form: str, tmp_path: Path) -> None:
    base, adapter = sources(name, tmp_path)
    graph = export(name, tmp_path / "onnx" / "model.onnx", optimized=form != "plain")
    if form == "anonymous":
        anonymous(graph)
    done = run("merge", base, adapter, "--onnx", graph, "-o", tmp_path / "merged", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["modules"]) == len(load_package(adapter).modules)
    assert (report["by_content"] > 0) == (form == "anonymous") or form == "optimized"
    expected = expected_logits(name, adapter)
    got = logits(tmp_path / "merged" / "model.onnx", name)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(logits(graph, name) - expected).max() > 1e-3 * np.abs(expected).max()
    if form == "plain":
        onnx.checker.check_model(tmp_path / "merged" / "model.onnx")


def test_the_error_for_a_missing_weight_lists_candidates(tmp_path: Path) -> None:
    base, adapter = sources("bert", tmp_path)
    graph = anonymous(export("bert", tmp_path / "onnx" / "model.onnx", optimized=False))
    with pytest.raises(AdapterError, match=r"pass --base .* Weights of that size are weight_"):
        merge_graph(graph, load_package(adapter), tmp_path / "merged")
    model = ir.load(graph)
    for value in model.graph.initializers.values():
        if value.const_value is not None and len(value.const_value.shape) == 2:
            value.const_value = ir.tensor(value.const_value.numpy() * 2, name=value.name)
    save_model(model, graph)
    words = ["merge", base, adapter, "--onnx", graph, "-o", tmp_path / "merged"]
    fails(3, "was exported from another base", *words)
    fails(3, "ONNX model not found", *words[:3], "--onnx", tmp_path / "none.onnx", *words[5:])
    graph.write_bytes(b"not a graph")
    fails(3, "cannot be read as an ONNX model", *words)
    assert not (tmp_path / "merged").exists()


def test_a_large_graph_keeps_its_weights_in_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmlora_converters.graph.files.model_file.INLINE_LIMIT", 0)
    base, adapter = sources("bert", tmp_path)
    graph = export("bert", tmp_path / "onnx" / "model.onnx", optimized=True)
    seen: list[tuple[int, int]] = []
    merge_graph(
        graph,
        load_package(adapter),
        tmp_path / "merged",
        base=Checkpoint(base),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert (tmp_path / "merged" / "model.onnx.data").is_file()
    assert seen[-1][0] <= seen[-1][1]
    expected = expected_logits("bert", adapter)
    got = logits(tmp_path / "merged" / "model.onnx", "bert")
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    (tmp_path / "merged" / "model.onnx.data").unlink()
    words = ["merge", base, adapter, "--onnx", tmp_path / "merged" / "model.onnx", "-o", tmp_path / "again"]
    fails(3, "which is missing: put it next to the model", *words)


def test_values_that_overflow_are_refused(tmp_path: Path) -> None:
    base, adapter = sources("bert", tmp_path)
    graph = export("bert", tmp_path / "onnx" / "model.onnx", optimized=False)
    loaded = load_package(adapter)
    huge = {
        path: replace(module, lora_A=np.full_like(module.lora_A, 1e38), lora_B=np.full_like(module.lora_B, 1e38))
        for path, module in loaded.modules.items()
    }
    loaded = replace(loaded, modules=huge)
    with pytest.raises(AdapterError, match="cannot hold"):
        merge_graph(graph, loaded, tmp_path / "merged", base=Checkpoint(base))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("form", ["plain", "anonymous"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_a_head_of_another_size_replaces_that_of_the_graph(name: str, form: str, tmp_path: Path) -> None:
    base = make_base(name, tmp_path)
    adapter = make_adapter(name, tmp_path, "three")
    (tmp_path / "onnx").mkdir()
    graph = export(name, tmp_path / "onnx" / "model.onnx", optimized=form == "anonymous")
    (tmp_path / "onnx" / "config.json").write_text("{}")
    if form == "anonymous":
        anonymous(graph)
    done = run("merge", base, adapter, "--onnx", graph, "-o", tmp_path / "merged")
    assert done.code == 0, done.stderr
    expected, _ = load_adapted(base, adapter)
    want = output(expected, ARCHITECTURES[name].inputs()).numpy()
    got = logits(tmp_path / "merged" / "model.onnx", name)
    assert got.shape == want.shape == (3, 5)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert list(config["label2id"]) == LABELS["three"]


def test_a_bias_that_the_exporter_left_out_is_added(tmp_path: Path) -> None:
    base, adapter = make_sources("bert", tmp_path)  # the bias of this head is zero
    (tmp_path / "onnx").mkdir()
    model = build("bert")
    inputs = trace_inputs(
        get_task("text-classification"), model.config, get_task("text-classification").inputs.load_processor(base)
    )
    graph = tmp_path / "onnx" / "model.onnx"
    exported = export_torch(model, inputs)
    save_model(optimize(exported, [{k: v.numpy() for k, v in inputs.tensors.items()}], tmp_path).model, graph)
    done = run("merge", base, adapter, "--onnx", graph, "-o", tmp_path / "merged")
    assert done.code == 0, done.stderr
    want = expected_logits("bert", adapter)
    got = logits(tmp_path / "merged" / "model.onnx", "bert")
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_a_merge_is_compared_with_pytorch_before_it_is_written(tmp_path: Path) -> None:
    base, adapter = sources("bert", tmp_path)
    graph = export("bert", tmp_path / "onnx" / "model.onnx", optimized=False)
    done = run("merge", base, adapter, "--onnx", graph, "-o", tmp_path / "merged", "--json")
    assert done.code == 0, done.stderr
    record = json.loads((tmp_path / "merged" / PROVENANCE_FILE).read_text())["verification"]
    assert record["passed"] and record["onnx"]["max_relative_error"] < 1e-5 and record["onnx"]["rows"] == 16
    assert json.loads(done.stdout)["verification"] == record
    unverified = run("merge", base, adapter, "--onnx", graph, "-o", tmp_path / "unverified", "--no-verify")
    assert unverified.code == 0 and "Not compared with PyTorch" in unverified.stderr + unverified.stdout


def test_a_graph_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    base, adapter = sources("bert", tmp_path)
    graph = export("bert", tmp_path / "onnx" / "model.onnx", optimized=False)
    model = onnx.load(graph)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Identity"
    del softmax.attribute[:]
    onnx.save(model, graph)
    fails(6, "or computes something else", "merge", base, adapter, "--onnx", graph, "-o", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
