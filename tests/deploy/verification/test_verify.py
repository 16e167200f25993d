"""Verification accepts a right bundle, and tells every way a bundle can be wrong from the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from rmlora.errors import ParityError
from rmlora.storage import sha256_file
from rmlora.tasks import get_task
from rmlora_converters.graph.files import model_file as graph_file
from rmlora_converters.graph.passes.open_attention import open_attention, open_attention_per_projection
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.report import VerificationReport
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.pipeline import export_bundle
from rmlora_deploy.runtime.providers import create_session
from rmlora_deploy.verification.compare import TOLERANCES, compare, within
from rmlora_deploy.verification.sample_batches import make_sample_batches, sample_inputs
from rmlora_deploy.verification.verify_merged_bundle import raise_on_mismatch
from tests.helpers.bundles import make_bundle, make_sources
from tests.helpers.cli import fails, run, text_data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, adapter and bundle of the tiny BERT; copy it before changing it."""
    directory = tmp_path_factory.mktemp("verify")
    make_bundle("bert", directory)
    return directory


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def logits(bundle: Bundle) -> list[np.ndarray]:
    preprocessor = bundle.preprocessor()
    session = bundle.session()
    batches = make_sample_batches(preprocessor, sample_inputs(preprocessor, None))
    return [session.run(None, dict(batch))[0] for batch in batches]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_external_weights_move_with_the_graph(
    precision: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_file, "INLINE_LIMIT", 0)
    settings = ExportSettings(
        str(made / "base"), {"adapter": made / "adapter"}, tmp_path / "bundle", precision=precision
    )  # type: ignore[arg-type]
    bundle = export_bundle(settings, on_progress=lambda line: None)
    assert set(bundle.manifest.model.files) == {"model.onnx", "model.onnx.data"}
    expected = logits(bundle)
    (tmp_path / "bundle").rename(tmp_path / "moved")
    for a, b in zip(expected, logits(Bundle.open(tmp_path / "moved")), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not [path for path in (tmp_path / "moved").iterdir() if path.is_dir()]


def test_the_graph_holds_no_paths_of_the_machine_it_was_made_on(made: Path) -> None:
    content = (made / "bundle" / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(made).encode() not in content


def test_int8_quantizes_fused_attention_and_keeps_the_head(tmp_path: Path) -> None:
    bundle = make_bundle("bert", tmp_path, precision="int8")
    graph = onnx.load(bundle.model_path).graph
    attention = [node for node in graph.node if "Attention" in node.op_type]
    assert [(node.domain, node.op_type) for node in attention] == [("", "Attention")] * 2  # the one without projections
    head = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert any(name.startswith("classifier.weight") for name in head[0].input)
    assert len(head) == 1


@pytest.mark.parametrize(
    ("opened", "opset", "operator"),
    [
        (open_attention, 20, ("com.microsoft", "MultiHeadAttention")),
        (open_attention_per_projection, 20, ("", "Attention")),
        (open_attention_per_projection, 19, ("com.microsoft", "MultiHeadAttention")),  # too old to become 23
    ],
)
def test_opened_attention_computes_the_same(
    copied: Path, opened: Callable[[ir.Model], int], opset: int, operator: tuple[str, str]
) -> None:
    bundle = Bundle.open(copied / "bundle")
    expected = logits(bundle)
    model = ir.load(bundle.model_path)
    model.graph.opset_imports[""] = opset
    assert opened(model) == 2
    assert [(node.domain, node.op_type) for node in model.graph if "Attention" in node.op_type] == [operator] * 2
    assert model.graph.opset_imports[""] == (23 if operator[0] == "" else opset)
    graph_file.save_model(model, bundle.model_path)
    onnx.checker.check_model(bundle.model_path, full_check=False)
    for a, b in zip(expected, logits(bundle), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)
    assert opened(model) == 0


def accept(bundle: Bundle) -> None:
    """Make the manifest accept the model file as it is now."""
    bundle.manifest.model.files["model.onnx"] = sha256_file(bundle.model_path)
    bundle.save_manifest()


def test_nan_is_reported_as_such(copied: Path) -> None:
    bundle = Bundle.open(copied / "bundle")
    model = onnx.load(bundle.model_path)
    weight = next(item for item in model.graph.initializer if item.name == "classifier.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, bundle.model_path)
    accept(bundle)
    sources = ["--base", copied / "base", "--adapter", copied / "adapter"]
    fails(6, "gives 16 logits that are NaN or infinite. The first layer that differs is 'classifier' (is not finite)",
          "verify", copied / "bundle", *sources)  # fmt: skip
    report = json.loads((copied / "bundle" / "manifest.json").read_text())["verification"]
    assert report["passed"] is False
    assert report["onnx"]["not_finite"] == 16


def test_a_base_that_gives_nan_is_not_a_reference(tmp_path: Path) -> None:
    base, adapter = make_sources("bert", tmp_path)
    tensors = load_file(base / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.bias"][:] = np.nan
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    fails(3, "PyTorch itself gives NaN or infinity", "export", base, "-a", adapter, "-o", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_sources_are_recognized(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(copied / "adapter", copied.parent / "kept")
    bundle, base, adapter = copied / "bundle", copied / "base", copied / "adapter"
    other, _ = make_sources("bert", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["bert.encoder.layer.0.attention.self.query.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    fails(3, "is not the base this bundle was made from", "verify", bundle, "--base", other, "--adapter", adapter)
    # An adapter from elsewhere records no hash of its own; the bundle does.
    (adapter / "rmlora.json").unlink()
    factors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor * 2 for name, tensor in factors.items()}, adapter / "adapter_model.safetensors")
    fails(3, "is not the adapter this bundle was made from", "verify", bundle, "--base", base, "--adapter", adapter)
    monkeypatch.setenv("RMLORA_CACHE", str(tmp_path / "another-machine"))
    message = "The directory of this bundle's base 'base' is not known on this machine, or is gone: pass it with --base"
    fails(3, message, "verify", bundle, "--adapter", copied.parent / "kept")


def test_a_bundle_exported_despite_a_base_mismatch_can_be_verified(tmp_path: Path) -> None:
    base, adapter = make_sources("bert", tmp_path, base_fingerprint="sha256:" + "0" * 64, base_model="some-base")
    words = ["export", base, "-a", adapter, "-o", tmp_path / "bundle", "--allow-base-mismatch"]
    assert run(*words).code == 0
    assert run("verify", tmp_path / "bundle").code == 0


def test_any_altered_file_is_refused(copied: Path) -> None:
    bundle = copied / "bundle"
    config = (bundle / "tokenizer_config.json").read_text()
    (bundle / "tokenizer_config.json").write_text(config + " ")
    fails(3, "tokenizer_config.json differs from the manifest (SHA-256)", "verify", bundle, "--reference-only")
    (bundle / "tokenizer_config.json").write_text(config)
    (bundle / "reference.safetensors").write_bytes(b"x" * 40)
    opened = Bundle.open(bundle, check_files=False)
    del opened.manifest.files["reference.safetensors"]
    opened.save_manifest()
    fails(3, "reference.safetensors cannot be read", "verify", bundle, "--reference-only")
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["model"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    fails(3, "lacks 'model': the manifest is damaged", "verify", bundle)


def test_wrong_data_and_providers_are_refused_before_the_work(copied: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "w1", "label": "purple"}\n')
    message = "has the label 'purple', but the model's are red, green, blue"
    fails(3, message, "verify", copied / "bundle", "--data", data, "--reference-only")
    words = ["export", copied / "base", "-a", copied / "adapter", "-o", tmp_path / "new", "--data", data]
    fails(3, message, *words)
    fails(5, "Provider 'dml'", "verify", copied / "bundle", "--reference-only", "--provider", "dml")
    fails(2, "Unknown provider 'gpu'", "verify", copied / "bundle", "--reference-only", "--provider", "gpu")


def test_data_may_number_the_labels_as_in_training(copied: Path, tmp_path: Path) -> None:
    named = text_data(tmp_path / "named.jsonl", rows=12)
    rows = [json.loads(line) for line in named.read_text().splitlines()]
    labels = ["red", "green", "blue"]
    numbered = tmp_path / "numbered.jsonl"
    numbered.write_text("".join(json.dumps({**row, "label": labels.index(row["label"])}) + "\n" for row in rows))
    measured = [
        json.loads(run("verify", copied / "bundle", "--reference-only", "--data", data, "--json").stdout)["evaluation"]
        for data in (named, numbered)
    ]
    assert measured[0]["onnx"] == measured[1]["onnx"]
    for cells, unknown in (((1, 2), "1"), ((0, 3), "3"), ((0, "red"), "0")):
        numbered.write_text("".join(json.dumps({"text": "w1", "label": cell}) + "\n" for cell in cells))
        message = f"has the label '{unknown}', but the model's are red, green, blue"
        fails(3, message, "verify", copied / "bundle", "--data", numbered, "--reference-only")


def test_a_lost_metric_fails_although_single_logits_pass(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = text_data(copied / "test.jsonl", rows=30)
    sources = ["--base", copied / "base", "--adapter", copied / "adapter"]
    report = json.loads(run("verify", copied / "bundle", *sources, "--data", data, "--json").stdout)
    assert report["passed"]
    scores = {**report["evaluation"], "pytorch": 0.9, "onnx": 0.5}
    worse = VerificationReport.model_validate({**report, "passed": False, "evaluation": scores})
    with pytest.raises(ParityError, match=r"accuracy 0.5000 on test.jsonl where PyTorch has 0.9000"):
        raise_on_mismatch(worse, "fp32")


def test_tolerance_of_the_metric() -> None:
    int8, fp32 = TOLERANCES["int8"], TOLERANCES["fp32"]
    assert int8.accepts_metric(0.95, 0.94, 1000)
    assert not int8.accepts_metric(0.95, 0.938, 1000)
    assert int8.accepts_metric(0.95, 0.90, 20)  # one example of twenty
    assert not int8.accepts_metric(0.95, 0.85, 20)
    assert fp32.accepts_metric(0.9, 0.95, 1000)
    assert not fp32.accepts_metric(0.95, 0.948, 1000)


def test_rows_with_nan_never_agree() -> None:
    scores = get_task("text-classification").outputs
    result = compare([np.array([[1.0, 2.0], [3.0, 1.0]])], [np.array([[np.nan, 2.0], [3.0, 1.0]])], scores)
    assert result.model_dump() == {
        "max_abs_error": 0.0, "mean_abs_error": 0.0, "max_relative_error": 0.0, "rms_relative_error": 0.0,
        "argmax_agreement": 0.5, "not_finite": 1, "rows": 2, "min_cosine": None,
    }  # fmt: skip
    assert not within(result, TOLERANCES["int8"].model_copy(update={"agreement": 0.0}))


def test_saved_graphs_open_without_the_project(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "bundle" / "model.onnx", tmp_path / "alone.onnx")
    onnx.checker.check_model(tmp_path / "alone.onnx")
    assert create_session(tmp_path / "alone.onnx").get_outputs()[0].name == "logits"
