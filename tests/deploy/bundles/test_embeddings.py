"""Bundles for embeddings: merged and with branches, every pooling, graphs from other exporters, and every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from transformers import AutoModel

from rmlora.errors import ConfigError, InputError
from rmlora.tasks import get_task
from rmlora_converters.graph.files.model_file import save_model
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.torch_export import export_torch
from rmlora_deploy.exporter.trace_inputs import trace_inputs
from rmlora_deploy.inference.classifier import Classifier
from rmlora_deploy.inference.embedder import Embedder
from tests.helpers.branch_graphs import make_adapter
from tests.helpers.cli import fails, run, run_process
from tests.helpers.encoders import RANKS, TEXTS, make_encoder, peft_vectors, write_modules
from tests.helpers.handmade import word_bundle

CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture
def copied(embedded: Path, tmp_path: Path) -> Path:
    shutil.copytree(embedded, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_adapter_embeds_as_peft_does_alone_and_mixed(embedded: Path) -> None:
    bundle = Bundle.open(embedded / "vectors")
    assert bundle.task.name == "feature-extraction" and bundle.labels == []
    assert bundle.manifest.pooling.to_dict() == {"mode": "mean", "normalize": True, "source": "default"}
    assert not any("pooler" in branch.module for branch in bundle.lora_inputs().modules)
    report = bundle.manifest.verification.to_dict()
    assert report["passed"] and report["base"]["bit_equal"]
    assert report["mixed"]["argmax_agreement"] is None and report["mixed"]["min_cosine"] > 0.999999
    expected = {name: peft_vectors(embedded / "base", embedded / name, TEXTS) for name in RANKS}
    embedder = Embedder.open(embedded / "vectors")
    for name in RANKS:
        got = embedder.embed(TEXTS, name)
        np.testing.assert_allclose(got, expected[name], **CLOSE)
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(embedder.embed(TEXTS), peft_vectors(embedded / "base", None, TEXTS), **CLOSE)
    mixed = embedder.embed(TEXTS, ["far", None, "near", {"far": 1.0}], batch_size=3)
    rows = [expected["far"][0], embedder.embed(TEXTS[1:2])[0], expected["near"][2], expected["far"][3]]
    np.testing.assert_allclose(mixed, np.stack(rows), **CLOSE)


def test_onnxruntime_alone_gives_finished_vectors(embedded: Path) -> None:
    session = ort.InferenceSession(embedded / "vectors" / "model.onnx", providers=["CPUExecutionProvider"])
    arrays = Bundle.open(embedded / "vectors").preprocessor()(TEXTS)
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(embedded / "vectors" / "adapters" / "far.onnx_adapter"))
    options.add_active_adapter(adapter)
    (got,) = session.run(["sentence_embedding"], arrays, options)
    np.testing.assert_allclose(got, peft_vectors(embedded / "base", embedded / "far", TEXTS), **CLOSE)


def test_an_adapters_own_files_choose_the_pooling(tmp_path: Path) -> None:
    base = make_encoder("llama", tmp_path, ranks={"only": 3})
    write_modules(tmp_path / "only", {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True})
    write_modules(base, {"pooling_mode": "mean"}, more=["Normalize"])  # the adapter's own files win
    done = run("export", base, "-a", tmp_path / "only", "-o", tmp_path / "bundle", "--json")
    assert done.code == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["pooling"] == {"mode": "last", "normalize": False, "source": "adapter"}
    assert manifest["verification"]["passed"]
    expected = peft_vectors(base, tmp_path / "only", TEXTS, mode="last", normalize=False)
    got = Embedder.open(tmp_path / "bundle").embed(TEXTS)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_graph_from_another_exporter_is_pooled_without_torch(embedded: Path, copied: Path) -> None:
    task = get_task("feature-extraction")
    model = AutoModel.from_pretrained(embedded / "base").eval()
    inputs = trace_inputs(task, model.config, task.inputs.load_processor(embedded / "base"))
    graph = export_torch(model, inputs, outputs=["last_hidden_state"])  # and the pooler's output, as from Optimum
    assert len(graph.graph.outputs) == 2
    save_model(graph, copied / "foreign.onnx")
    words = ("export", copied / "base", "--mode", "branches", "-a", copied / "near", "--onnx", copied / "foreign.onnx")
    _forget_task(copied / "near")
    flags = ("--pooling", "cls", "--no-normalize", "--precision", "fp16", "--task", "feature-extraction")
    done = run_process(*words, *flags, "-o", copied / "other", without=("torch", "peft", "onnxscript", "accelerate"))
    assert done.code == 0, done.stderr
    assert Bundle.open(copied / "other").manifest.pooling.to_dict() == {
        "mode": "cls",
        "normalize": False,
        "source": "chosen",
    }
    expected = peft_vectors(embedded / "base", embedded / "near", TEXTS, mode="cls", normalize=False)
    got = Embedder.open(copied / "other").embed(TEXTS, "near")
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-2 * np.abs(expected).max())
    checked = run("verify", copied / "other", "--json")
    assert checked.code == 0, checked.stderr
    assert json.loads(checked.stdout)["adapters"]["near"]["onnx"]["min_cosine"] > 0.9999


def test_predict_shows_cosines_and_gives_vectors_as_json(embedded: Path, tmp_path: Path) -> None:
    shown = run("predict", embedded / "vectors", *TEXTS[:3], "-a", "far")
    assert shown.code == 0, shown.stderr
    assert "far: cosines" in shown.stdout and "the first of 16 numbers" in shown.stdout
    assert shown.stdout.count("1.000") == 3
    many = run("predict", embedded / "vectors", *TEXTS * 3, "-a", "far")
    assert "nearest" in many.stdout
    answered = run("predict", embedded / "vectors", *TEXTS, "--json")
    rows = json.loads(answered.stdout)
    assert [row["input"] for row in rows] == TEXTS and list(rows[0]["answers"]) == list(RANKS)
    expected = peft_vectors(embedded / "base", embedded / "far", TEXTS)
    np.testing.assert_allclose([row["answers"]["far"] for row in rows], expected, **CLOSE)
    fails(3, "has no adapter 'nobody'", "predict", embedded / "vectors", "w1", "-a", "nobody")
    fails(2, "--top is for labels and answers", "predict", embedded / "vectors", "w1", "--top", "2")
    words = ("predict", embedded / "vectors", "w1", "--with", word_bundle(tmp_path / "words"))
    fails(
        2, "'vectors' is for feature-extraction and 'words' for text-classification: ask them in two commands", *words
    )
    with pytest.raises(ConfigError, match="is for feature-extraction and classifies nothing"):
        Classifier.open(embedded / "vectors")
    with pytest.raises(InputError, match="Text 2 is empty"):
        Embedder.open(embedded / "vectors").embed(["w1", " "])


def test_inspect_verify_and_bench_work_with_vectors(copied: Path) -> None:
    shown = run("inspect", copied / "vectors")
    assert shown.code == 0, shown.stderr
    assert "mean, normalized" in shown.stdout and "sentence_embedding" in shown.stdout
    without = run_process("verify", copied / "vectors", "--json", without=("torch", "peft", "onnxscript", "accelerate"))
    assert without.code == 0, without.stderr
    assert json.loads(without.stdout)["mixed"]["min_cosine"] > 0.999999
    assert run("inspect", copied / "near").stdout.count("feature-extraction") == 1
    sizes = ("--batch", "1", "--length", "4", "--threads", "1", "--rounds", "1", "--seconds", "0.01", "--warmup", "0")
    measured = json.loads(run("bench", copied / "vectors", *sizes, "--json").stdout)
    errors = {item["name"]: item.get("relative_error") for item in measured["contestants"]}
    assert errors["ONNX Runtime cpu, one adapter"] < 1e-5


def test_adapters_are_added_and_removed_and_unfit_ones_refused(copied: Path, tmp_path: Path) -> None:
    bundle, far = copied / "vectors", copied / "far"
    assert run("adapter", "remove", bundle, "far").code == 0
    done = run("adapter", "add", bundle, f"again={far}")
    assert done.code == 0, done.stderr
    got = Embedder.open(bundle).embed(TEXTS, "again")
    np.testing.assert_allclose(got, peft_vectors(copied / "base", far, TEXTS), **CLOSE)
    assert "again" in run("adapter", "list", bundle).stdout
    classifier = make_adapter("bert", tmp_path, "one")
    fails(3, "is for text-classification, the bundle for feature-extraction", "adapter", "add", bundle, classifier)
    _forget_task(far)
    words = ("export", copied / "base", "--mode", "branches", "-a", far, "-o", tmp_path / "new")
    fails(2, "does not say which task it is for: pass --task", *words)
    write_modules(far, {"pooling_mode": "cls"})
    fails(
        3,
        "was trained with the pooling cls, not normalized, and the graph pools by mean",
        "adapter",
        "add",
        bundle,
        far,
    )
    words = (*words, "-a", copied / "near", "--task", "feature-extraction")
    write_modules(copied / "near", {"pooling_mode": "mean"})
    fails(3, "export them into separate bundles, or choose one with --pooling", *words)
    fails(3, "Data not found", *words, "--data", f"near={tmp_path / 'none.jsonl'}")


def _forget_task(adapter: Path) -> None:
    """Remove the task from an adapter's configuration."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "task_type": None}))


def test_pooling_is_for_embeddings(tmp_path: Path) -> None:
    bert = make_adapter("bert", tmp_path, "one")
    base = make_encoder("bert", tmp_path, ranks={})
    fails(
        2,
        "--pooling and --normalize are for embeddings",
        "export",
        base,
        "-a",
        bert,
        "-o",
        tmp_path / "b",
        "--pooling",
        "mean",
    )


def test_pooling_by_the_first_token_needs_padding_on_the_right(tmp_path: Path) -> None:
    base = make_encoder("llama", tmp_path, ranks={"only": 2})
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    words = ("export", base, "-a", tmp_path / "only", "-o", tmp_path / "b")
    fails(2, "does not work with a tokenizer that pads on the left", *words, "--pooling", "cls")
