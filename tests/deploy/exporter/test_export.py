"""Exported graphs of every family equal PyTorch with PEFT on many shapes; in a wrong graph the first wrong layer is found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import rmlora_deploy.exporter.optimize as optimize
from rmlora.errors import InputError
from rmlora.package import load_package, save_package
from rmlora.storage import sha256_file
from rmlora.tasks import get_task
from rmlora.torch_models import load_adapted
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.precision import _open
from rmlora_deploy.exporter.trace_inputs import trace_inputs
from rmlora_deploy.verification.compare import TOLERANCES, compare, within
from tests.helpers.bundles import LABELS, make_bundle, make_sources
from tests.helpers.cli import fails, run, run_process, text_data
from tests.helpers.models import ARCHITECTURES

EXPORTED = sorted(name for name, item in ARCHITECTURES.items() if item.task)
_RARE = ("roberta", "distilbert", "gpt2")
"""Like one of the others here, and tried with branches too."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with base, adapter and bundle of the tiny BERT; copy it before changing it."""
    directory = tmp_path_factory.mktemp("bert")
    make_bundle("bert", directory)
    return directory


@pytest.fixture
def copied(bert: Path, tmp_path: Path) -> Path:
    shutil.copytree(bert, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.rare] if name in _RARE else []) for name in EXPORTED]
)
def test_graph_equals_pytorch_on_every_shape(name: str, tmp_path: Path) -> None:
    bundle = make_bundle(name, tmp_path)
    report = bundle.manifest.verification.to_dict()
    assert report["passed"]
    assert report["onnx"]["max_relative_error"] <= 1e-5
    assert bundle.labels == LABELS
    model, _ = load_adapted(tmp_path / "base", tmp_path / "adapter")
    session = bundle.session()
    names = {item.name for item in session.get_inputs()}
    for batch, length in ((1, 1), (1, 9), (4, 2), (5, 30)):
        inputs = ARCHITECTURES[name].inputs(batch, length, seed=length)
        with torch.inference_mode():
            expected = model(**inputs).logits.numpy()
        (got,) = session.run(None, {key: value.numpy() for key, value in inputs.items() if key in names})
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_lower_precisions_stay_within_their_tolerance(name: str, precision: str, tmp_path: Path) -> None:
    bundle = make_bundle(name, tmp_path, precision=precision)
    operators = bundle.manifest.model.operators
    report = bundle.manifest.verification.to_dict()
    assert report["passed"]
    assert report["onnx"]["max_relative_error"] > 1e-6  # it is not simply the float32 graph
    assert ("MatMulIntegerToFloat" in operators and "DynamicQuantizeLinear" in operators) == (precision == "int8")
    assert [item.dtype for item in bundle.manifest.model.outputs] == ["float"]


def test_the_quantizer_is_given_no_shapes_of_weights_that_it_transposes(tmp_path: Path) -> None:
    """Those of onnxruntime before 1.32 transpose the head's weight in place, and fail on the shape that it had."""
    bundle = make_bundle("bert", tmp_path)
    graph = onnx.load(_open(shutil.copy(bundle.model_path, tmp_path / "model.onnx"))).graph
    assert graph.value_info
    assert not {item.name for item in graph.value_info} & {item.name for item in graph.initializer}


def test_rank_masks_are_applied(tmp_path: Path) -> None:
    base, path = make_sources("bert", tmp_path)
    adapter = load_package(path)
    mask = np.array([True, False, False, True])
    modules = {key: replace(module, rank_mask=mask) for key, module in adapter.modules.items()}
    save_package(replace(adapter, modules=modules), tmp_path / "masked")
    whole, _ = load_adapted(base, path)
    masked, _ = load_adapted(base, tmp_path / "masked")
    inputs = ARCHITECTURES["bert"].inputs()
    with torch.inference_mode():
        assert not torch.allclose(whole(**inputs).logits, masked(**inputs).logits, atol=1e-4)
    done = run("export", base, "-a", tmp_path / "masked", "-o", tmp_path / "bundle", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["verification"]["onnx"]["max_relative_error"] < 1e-5


def test_a_bundle_is_complete_and_can_be_moved(copied: Path, tmp_path: Path) -> None:
    (copied / "bundle").rename(tmp_path / "elsewhere")
    bundle = Bundle.open(tmp_path / "elsewhere")
    names = {path.name for path in bundle.path.iterdir()}
    assert {"manifest.json", "model.onnx", "config.json", "tokenizer.json", "reference.safetensors"} <= names
    assert not [name for name in names if "scratch" in name or name.startswith("tmp")]
    bundle.session().run(None, bundle.preprocessor()(["w1 w2 w3"]))
    manifest = bundle.manifest
    assert (manifest.mode, manifest.precision, manifest.task) == ("merged", "fp32", "text-classification")
    assert manifest.adapter.sha256 == load_package(copied / "adapter").metadata["tensors_sha256"]
    modules = [layer.module for layer in manifest.layers]
    assert modules[-1] == "classifier"
    assert any("layer.1" in module for module in modules)


def test_verification_is_repeated_and_measures_the_metric(copied: Path) -> None:
    data = text_data(copied / "test.jsonl", rows=30)
    sources = ["--base", copied / "base", "--adapter", copied / "adapter"]
    done = run("verify", copied / "bundle", *sources, "--data", data, "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["evaluation"]["examples"] == 30
    assert report["evaluation"]["onnx"] == report["evaluation"]["pytorch"]
    assert json.loads((copied / "bundle" / "manifest.json").read_text())["verification"] == report


def damage(path: Path, module: str) -> None:
    """Change the weight that makes the output of ``module``, and let the manifest accept the file."""
    bundle = Bundle.open(path)
    (tensor,) = (layer.tensor for layer in bundle.manifest.layers if layer.module == module)
    model = onnx.load(bundle.model_path)
    (node,) = (node for node in model.graph.node if tensor in node.output)
    weight = next(item for item in model.graph.initializer if item.name in node.input and len(item.dims) == 2)
    values = numpy_helper.to_array(weight).copy()
    values[:, 0] += 5.0  # one output only: the next layer norm would remove a shift of all of them
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, bundle.model_path)
    bundle.manifest.model.files["model.onnx"] = sha256_file(bundle.model_path)
    bundle.save_manifest()


def test_the_first_wrong_layer_of_a_graph_is_named(copied: Path) -> None:
    damage(copied / "bundle", "bert.encoder.layer.1.output.dense")
    sources = ["--base", copied / "base", "--adapter", copied / "adapter"]
    fails(
        6, "The first layer that differs is 'bert.encoder.layer.1.output.dense'", "verify", copied / "bundle", *sources
    )
    fails(
        6,
        "Verify where PyTorch is installed, without --reference-only",
        "verify",
        copied / "bundle",
        "--reference-only",
    )


def test_altered_and_incomplete_bundles_are_refused(copied: Path, tmp_path: Path) -> None:
    bundle = copied / "bundle"
    with open(bundle / "model.onnx", "ab") as file:
        file.write(b"x")
    fails(3, "differs from the manifest (SHA-256)", "verify", bundle)
    (bundle / "model.onnx").unlink()
    fails(3, "is missing: the bundle is incomplete", "verify", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "format_version": 7}))
    fails(3, "has format version 7, this program reads 3", "verify", bundle)
    (bundle / "manifest.json").unlink()
    fails(3, "holds no manifest.json", "verify", bundle)
    fails(3, "Bundle not found", "verify", tmp_path / "nowhere")


def test_missing_and_wrong_sources_are_named(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(copied.parent) not in (copied / "bundle" / "manifest.json").read_text()  # a bundle names no paths
    assert run("verify", copied / "bundle").code == 0  # on this machine they are recorded
    monkeypatch.setenv("RMLORA_CACHE", str(tmp_path / "another-machine"))
    fails(
        3, "The directory of this bundle's adapter 'adapter' is not known on this machine, or is gone: pass it with --adapter",
        "verify", copied / "bundle",
    )  # fmt: skip
    _, other = make_sources("bert", tmp_path / "other", base_model="x")
    adapter = load_package(other)
    changed = {key: replace(module, lora_B=module.lora_B * 2) for key, module in adapter.modules.items()}
    save_package(replace(adapter, modules=changed), tmp_path / "changed")
    words = ["verify", copied / "bundle", "--base", copied / "base", "--adapter", tmp_path / "changed"]
    fails(3, "is not the adapter this bundle was made from", *words)


def test_export_refuses_what_cannot_work(tmp_path: Path) -> None:
    base, adapter = make_sources("bert", tmp_path, base_fingerprint="sha256:" + "0" * 64, base_model="some-base")
    words = ["export", base, "-a", adapter, "-o", tmp_path / "bundle"]
    fails(3, "made for some-base", *words)
    fails(4, "optimum-onnx", *words, "--allow-base-mismatch", "--exporter", "optimum")
    fails(3, "Adapter not found", "export", base, "-a", tmp_path / "no", "-o", tmp_path / "bundle")
    fails(3, "Base model not found", "export", "./no", "-a", adapter, "-o", tmp_path / "bundle")
    fails(2, "Invalid value for '--precision'", *words, "--precision", "int3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    fails(8, "already exists and is not empty", "export", base, "-a", adapter, "-o", tmp_path / "full")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "full"}


def test_a_failed_verification_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = make_sources("bert", tmp_path)
    monkeypatch.setitem(TOLERANCES, "fp32", TOLERANCES["fp32"].model_copy(update={"relative_error": 0.0}))
    fails(6, "No bundle was written", "export", base, "-a", adapter, "-o", tmp_path / "bundle")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_fusions_that_change_outputs_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "EXACT", -1.0)
    bundle = make_bundle("bert", tmp_path)
    assert bundle.manifest.optimization.level == "folded"
    assert "the outputs of the fused graph differed" in bundle.manifest.optimization.reason
    assert bundle.manifest.verification.passed


def test_a_bundle_is_verified_and_used_without_torch(bert: Path, copied: Path) -> None:
    without = ("torch", "peft", "onnxscript", "accelerate")
    done = run_process("verify", copied / "bundle", "--json", without=without)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["against"] == "stored outputs of PyTorch and PEFT"
    assert run_process("predict", bert / "bundle", "w1 w2", "--json", without=without).code == 0
    assert run_process("inspect", bert / "adapter", "--base", bert / "base", without=without).code == 0
    merged = run_process("merge", bert / "base", bert / "adapter", "-o", copied / "merged", without=without)
    assert merged.code == 0, merged.stderr
    export = run_process("export", bert / "base", "-a", bert / "adapter", "-o", copied / "new", without=without)
    assert export.code == 4
    assert "(extra 'export')" in export.stderr and "pip install 'torch" in export.stderr


def test_comparison_counts_errors_and_never_accepts_nan() -> None:
    expected = [np.array([[1.0, 2.0], [4.0, 3.0]])]
    scores = get_task("text-classification").outputs
    result = compare(expected, [np.array([[1.0, 2.5], [3.0, 3.5]])], scores)
    assert (result.max_abs_error, result.mean_abs_error, result.max_relative_error) == (1.0, 0.5, 0.25)
    assert result.argmax_agreement == 0.5
    nan = compare(expected, [np.full((2, 2), np.nan)], scores)
    assert not any(within(nan, tolerance) for tolerance in TOLERANCES.values())
    with pytest.raises(InputError, match="shape"):
        compare(expected, [np.zeros((2, 3))], scores)


def test_images_are_traced_at_the_processors_size(tmp_path: Path) -> None:
    base, _ = make_sources("vit", tmp_path)
    processor = get_task("image-classification").inputs.load_processor(base)
    config = ARCHITECTURES["vit"].build().config
    config.image_size = 518  # DINOv2's own; its adapters are trained on less
    inputs = trace_inputs(get_task("image-classification"), config, processor)
    assert inputs.tensors["pixel_values"].shape[1:] == (3, 16, 16)


def test_a_model_is_traced_with_the_same_inputs_each_time(tmp_path: Path) -> None:
    base, _ = make_sources("bert", tmp_path)
    task, config = get_task("text-classification"), ARCHITECTURES["bert"].build().config
    before = torch.random.get_rng_state()
    first, second = (trace_inputs(task, config, task.inputs.load_processor(base)).tensors for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(torch.random.get_rng_state(), before)
