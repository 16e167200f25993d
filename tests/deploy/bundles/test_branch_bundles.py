"""Bundles with branches are exported, verified, extended and used; a wrong or foreign adapter is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rmlora.errors import InputError
from rmlora.package import load_package, save_package
from rmlora.storage import sha256_file
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter
from rmlora_deploy.bundles.adapters import add_adapter, record_verification, remove_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.inference.classifier import Classifier
from rmlora_deploy.verification.verify_branches import verify_branches
from tests.helpers.branch_graphs import LABELS, make_adapter, make_base
from tests.helpers.cli import fails, run, run_process, text_data
from tests.helpers.exports import anonymous, export
from tests.helpers.handmade import word_bundle

WITHOUT_TORCH = ("torch", "peft", "onnxscript", "accelerate")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with base, adapters and a bundle of two of them; copy it before changing it."""
    directory = tmp_path_factory.mktemp("branches")
    base = make_base("bert", directory)
    for rank, label in ((2, "one"), (4, "two"), (6, "three")):
        make_adapter("bert", directory, label, rank=rank)
    flags = ["-a", f"one={directory / 'one'}", "-a", f"two={directory / 'two'}"]
    done = run("export", base, "--mode", "branches", *flags, "-o", directory / "bundle")
    assert done.code == 0, done.stderr
    return directory


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_adapter_is_verified_alone_and_mixed(made: Path) -> None:
    bundle = Bundle.open(made / "bundle")
    report = bundle.manifest.verification.to_dict()
    assert report["passed"] and report["base"]["bit_equal"]
    assert {row["onnx"]["max_relative_error"] < 1e-5 for row in report["adapters"].values()} == {True}
    assert report["mixed"]["max_relative_error"] < 1e-5
    assert report["mixed"]["rows"] == 16
    assert bundle.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]  # the base's own head
    assert {name: entry.labels for name, entry in bundle.adapters.items()} == {k: LABELS[k] for k in ("one", "two")}
    assert [entry.rank for entry in bundle.adapters.values()] == [2, 4]
    assert [item.name for item in bundle.manifest.model.inputs] == [
        "input_ids",
        "attention_mask",
    ]


def errors(path: Path, exact: Path) -> list[float]:
    """Return the largest relative error of the base's outputs of every reference batch, against another bundle's."""
    _, lowered = load_reference(path / "reference.safetensors")
    _, expected = load_reference(exact / "reference.safetensors")
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(lowered, expected, strict=True)]


def test_int8_with_branches_uses_8_bits_unless_7_are_asked_for(made: Path, tmp_path: Path) -> None:
    flags = ["-a", f"one={made / 'one'}", "-a", f"two={made / 'two'}", "--precision", "int8"]
    for bits, more in ((8, []), (7, ["--int8-bits", "7"])):
        path = tmp_path / str(bits)
        done = run("export", made / "base", "--mode", "branches", *flags, *more, "-o", path, "--json")
        assert done.code == 0, done.stderr
        assert json.loads(done.stdout)["verification"]["base"]["bit_equal"]
        graph = onnx.load(path / "model.onnx").graph
        stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer if item.data_type == 3}
        used = [stored[node.input[1]] for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
        assert max(int(np.abs(array.astype(int)).max()) for array in used) == (127 if bits == 8 else 64)
    assert max(errors(tmp_path / "8", made / "bundle")) < max(errors(tmp_path / "7", made / "bundle"))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_lower_precisions_keep_the_branches_in_floating_point(made: Path, tmp_path: Path, precision: str) -> None:
    flags = ["-a", f"one={made / 'one'}", "-a", f"two={made / 'two'}", "--precision", precision]
    if precision == "int8":  # with 8 bits the base's own error is too small to measure that of the adapters by
        flags += ["--int8-bits", "7"]
    done = run("export", made / "base", "--mode", "branches", *flags, "-o", tmp_path / "bundle", "--json")
    assert done.code == 0, done.stderr
    manifest = json.loads(done.stdout)
    report = manifest["verification"]
    assert report["base"]["bit_equal"] or (precision == "fp16" and report["base"]["max_relative_error"] < 1e-3)
    operator = {"fp16": "MatMul", "int8": "MatMulIntegerToFloat", "int4": "MatMulNBits"}[precision]
    assert manifest["model"]["operators"][operator] >= 12
    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    lora_inputs = [item for item in graph.initializer if ".lora_" in item.name]
    assert len(lora_inputs) == 2 * 8 and {item.data_type for item in lora_inputs} == {kind}
    # What the adapters add is exact: with them the error is that of the base alone.
    alone = max(errors(tmp_path / "bundle", made / "bundle"))
    for row in report["adapters"].values():
        assert row["onnx"]["max_relative_error"] < 10 * alone + 1e-3


@pytest.mark.parametrize("name", ["dinov2", "gpt2", "distilbert"])
def test_other_families_and_images(name: str, tmp_path: Path) -> None:
    base = make_base(name, tmp_path)
    one = make_adapter(name, tmp_path, "one", rank=2)
    three = make_adapter(name, tmp_path, "three", rank=5)
    done = run("export", base, "--mode", "branches", "-a", one, "-a", three, "-o", tmp_path / "bundle", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)["verification"]
    assert report["base"]["bit_equal"]
    assert report["mixed"]["max_relative_error"] < 1e-5


def test_an_adapter_added_during_verification_is_kept(copied: Path) -> None:
    opened = Bundle.open(copied / "bundle")
    report, expected = verify_branches(opened, None)
    other = Bundle.open(copied / "bundle")
    add_adapter(other, "third", copied / "three")
    remove_adapter(other, "one")
    record_verification(opened, report, expected)
    kept = Bundle.open(copied / "bundle")
    assert list(kept.adapters) == ["two", "third"]
    assert list(kept.manifest.verification.adapters) == ["two"]


def test_adapters_are_added_and_removed_without_torch(copied: Path) -> None:
    bundle = copied / "bundle"
    done = run_process("adapter", "add", bundle, f"third={copied / 'three'}", "--json", without=WITHOUT_TORCH)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["added"]["third"]["labels"] == LABELS["three"]
    listed = run_process("adapter", "list", bundle, "--json", without=WITHOUT_TORCH)
    assert list(json.loads(listed.stdout)) == ["one", "two", "third"]
    table = run("adapter", "list", bundle)
    assert "not verified" in table.stdout and "third" in table.stdout
    answers = run_process("predict", bundle, "w1 w2", "--json", without=WITHOUT_TORCH)
    assert answers.code == 0, answers.stderr
    (row,) = json.loads(answers.stdout)
    assert row["answers"]["third"][0]["label"] in LABELS["three"]
    # Without torch it cannot be verified, and the report says so; once verified with torch, it can be anywhere.
    alone = run_process("verify", bundle, "--json", without=WITHOUT_TORCH)
    assert alone.code == 0, alone.stderr
    assert json.loads(alone.stdout)["unverified"] == ["third"]
    verified = json.loads(run("verify", bundle, "--json").stdout)
    assert verified["passed"] and verified["adapters"]["third"]["onnx"]["max_relative_error"] < 1e-5
    again = json.loads(run_process("verify", bundle, "--json", without=WITHOUT_TORCH).stdout)
    assert again["against"] == "stored outputs of PyTorch and PEFT" and not again["unverified"]
    assert run("adapter", "remove", bundle, "third", "one").code == 0
    assert {path.name for path in (bundle / "adapters").iterdir()} == {"two.onnx_adapter", "two.reference.safetensors"}
    Bundle.open(bundle)
    assert run("verify", bundle).code == 0


def test_of_several_adapters_none_or_those_before_the_wrong_one_are_changed(copied: Path) -> None:
    """The card listed what was removed before a name that is not there, and lacked what was added before a wrong adapter."""
    bundle, card = copied / "bundle", copied / "bundle" / "README.md"
    fails(3, "no adapter 'x': it has one, two", "adapter", "remove", bundle, "one", "x")
    assert list(Bundle.open(bundle).adapters) == ["one", "two"]
    fails(3, "Adapter not found", "adapter", "add", bundle, f"third={copied / 'three'}", f"fourth={copied / 'no'}")
    assert list(Bundle.open(bundle).adapters) == ["one", "two", "third"] and "third" in card.read_text()
    done = run("adapter", "remove", bundle, "third", "third")
    assert done.code == 0 and "Removed third from" in done.stdout and "third" not in card.read_text()


def test_a_batch_may_have_any_number_of_rows(made: Path) -> None:
    """More than 32 rows were refused, with a way out that no flag has."""
    done = run("predict", made / "bundle", "--batch-size", "40", "--json", *(f"w{number % 3}" for number in range(25)))
    assert done.code == 0, done.stderr
    alone = json.loads(run("predict", made / "bundle", "--json", "w0").stdout)
    for row, name in itertools.product(json.loads(done.stdout)[::3], ("one", "two")):
        (got,), (expected,) = row["answers"][name], alone[0]["answers"][name]
        assert got["label"] == expected["label"] and got["probability"] == pytest.approx(
            expected["probability"], abs=1e-5
        )


def test_an_adapter_that_cannot_be_added_changes_no_file(copied: Path, tmp_path: Path) -> None:
    bundle = copied / "bundle"
    before = {path: sha256_file(path) for path in bundle.rglob("*") if path.is_file()}
    fails(2, "already has an adapter 'one'", "adapter", "add", bundle, f"one={copied / 'three'}")
    fails(2, "cannot name an adapter", "adapter", "add", bundle, f"a b={copied / 'three'}")
    fails(3, "Adapter not found", "adapter", "add", bundle, f"x={tmp_path / 'no'}")
    fails(3, "no adapter 'x': it has one, two", "adapter", "remove", bundle, "x")
    adapter = load_package(copied / "three")
    first, module = next(iter(adapter.modules.items()))
    renamed = {"bert.pooler.dense": replace(module, path="bert.pooler.dense"), **dict(adapter.modules)}
    save_package(replace(adapter, modules=renamed), tmp_path / "more")
    fails(3, "The graph has no branch for 'bert.pooler.dense'", "adapter", "add", bundle, tmp_path / "more")
    huge = {**adapter.modules, first: replace(module, lora_B=module.lora_B * np.float32(1e38))}
    save_package(replace(adapter, modules=huge), tmp_path / "huge")
    fails(3, "infinity", "adapter", "add", bundle, tmp_path / "huge")
    base = load_package(copied / "two")
    nothing = {path: replace(item, lora_B=item.lora_B * 0) for path, item in base.modules.items()}
    own = onnx.load(bundle / "model.onnx").graph
    head = {item.name: numpy_helper.to_array(item) for item in own.initializer}
    weight = next(array for name, array in head.items() if "classifier.weight" in name and array.size)
    bias = next(array for name, array in head.items() if "classifier.bias" in name and array.size)
    modules_to_save = {
        "classifier.weight": weight if weight.shape[0] == 3 else weight.T,
        "classifier.bias": bias.ravel(),
    }
    save_package(replace(base, modules={**nothing}, modules_to_save=modules_to_save, metadata={}), tmp_path / "nothing")
    fails(3, "changes nothing in the outputs", "adapter", "add", bundle, tmp_path / "nothing")
    fails(
        2,
        "only a bundle exported with --mode branches has a list of adapters",
        "adapter",
        "list",
        word_bundle(tmp_path / "words"),
    )
    fails(
        2,
        "only a bundle exported with --mode branches takes adapters",
        "adapter",
        "add",
        tmp_path / "words",
        f"x={copied / 'three'}",
    )
    assert {path: sha256_file(path) for path in bundle.rglob("*") if path.is_file()} == before


def test_an_adapter_of_another_base_is_refused(copied: Path, tmp_path: Path) -> None:
    modules = list(load_package(copied / "three").modules)
    other = make_adapter("bert", tmp_path, "three", base_weights=dict.fromkeys(modules, "0" * 32), base_model="another")
    fails(3, "was made for another base than the graph", "adapter", "add", copied / "bundle", f"x={other}")
    assert run("adapter", "add", copied / "bundle", f"x={other}", "--allow-base-mismatch").code == 0
    flags = ["--mode", "branches", "-a", other, "-o", tmp_path / "b"]
    fails(3, "made for another", "export", copied / "base", *flags)
    assert not (tmp_path / "b").exists()


def test_an_adapter_that_names_another_base_is_added_with_a_warning(copied: Path) -> None:
    foreign = copied / "three"
    (foreign / "rmlora.json").unlink()
    config = json.loads((foreign / "adapter_config.json").read_text())
    for name, recorded, warned in (("a", "someone/base", False), ("b", "someone/another", True)):
        (foreign / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": recorded}))
        added = run("adapter", "add", copied / "bundle", f"{name}={foreign}", "--json")
        told = " ".join(added.stderr.split())
        assert added.code == 0 and ("was made for 'someone/another', and the base here is base." in told) == warned, (
            told
        )
        assert list(json.loads(added.stdout)["added"]) == [name]


def test_a_wrong_adapter_file_is_refused(copied: Path) -> None:
    bundle = Bundle.open(copied / "bundle")
    one, two = (bundle.path / bundle.adapter(name).file for name in ("one", "two"))
    shutil.copyfile(two, one)
    fails(3, "differs from the manifest (SHA-256)", "verify", bundle.path)
    bundle.manifest.adapters["one"].files[bundle.adapter("one").file] = sha256_file(one)
    bundle.save_manifest()
    done = run("predict", bundle.path, "w1", "-a", "one")
    assert done.code == 3 and "3 scores for 2 labels" in done.stderr
    one.write_bytes(b"no adapter")
    fails(3, "differs from the manifest", "predict", bundle.path, "w1")


def test_every_row_uses_the_labels_and_length_of_its_adapter(made: Path) -> None:
    classifier = Classifier.open(made / "bundle", threads=1)
    texts = ["w1 w2", "w3", "w4 w5 w6"]
    mixed = classifier.predict(texts, ["one", "two", None])
    assert [len(answer.ranking) for answer in mixed] == [2, 3, 3]
    for text, name, answer in zip(texts, ("one", "two", None), mixed, strict=True):
        (alone,) = classifier.predict([text], name)
        assert alone.label == answer.label
        assert alone.probability == pytest.approx(answer.probability, rel=1e-5)
    with pytest.raises(InputError, match="no adapter 'nobody': it has one, two"):
        classifier.predict(texts, "nobody")
    entries = classifier.bundle.manifest.adapters
    entries["one"].max_length = 4
    cut, whole = classifier.predict(["w1 w2 w3 w4 w5 w6"] * 2, ["one", {"one": 0.5}])
    assert cut.ranking != whole.ranking


def test_a_specialized_graph_gives_the_outputs_of_the_branches(made: Path) -> None:
    bundle = Bundle.open(made / "bundle")
    session = bundle.adapter_session(threads=1)
    batches, base = load_reference(bundle.path / "reference.safetensors")
    before = {name: np.stack(session.run(batches[2], name)) for name in (None, "one", "two")}
    session.specialize("one")
    session.specialize(None)
    np.testing.assert_array_equal(np.stack(session.run(batches[2])), base[2])
    for name, expected in before.items():
        np.testing.assert_allclose(np.stack(session.run(batches[2], name)), expected, rtol=1e-4, atol=1e-5)
    half = np.stack(session.run(batches[2], {"one": 0.5}))
    assert np.abs(half - before["one"]).max() > 1e-3
    session.unload("one")
    with pytest.raises(InputError, match="no adapter 'one'"):
        session.run(batches[2], "one")
    session.register("one", lambda: {})
    assert (
        np.abs(np.stack(session.run(batches[2], "one")) - before["one"][:, :2].mean()).shape[1] == 3
    )  # of the new adapter, which has no arrays


def test_a_graph_from_another_exporter_needs_no_torch(made: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    graph = anonymous(export("bert", tmp_path / "onnx" / "model.onnx", optimized=False))
    words = ["export", made / "base", "--mode", "branches", "--onnx", graph, "-a", made / "one", "-a", made / "two"]
    done = run_process(*words, "-o", tmp_path / "bundle", "--json", without=WITHOUT_TORCH)
    assert done.code == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["exporter"] == "given" and manifest["verification"] is None
    verified = json.loads(run("verify", tmp_path / "bundle", "--json").stdout)
    assert verified["passed"] and verified["base"]["bit_equal"]
    assert verified["mixed"]["max_relative_error"] < 1e-5


def test_weights_of_a_quantized_graph_are_found_by_name(made: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    (tmp_path / "onnx").mkdir()
    graph = export("bert", tmp_path / "onnx" / "model.onnx", optimized=False)
    quantize_dynamic(graph, tmp_path / "onnx" / "int8.onnx", op_types_to_quantize=["MatMul", "Gemm"])
    words = [
        "export",
        made / "base",
        "--mode",
        "branches",
        "--onnx",
        tmp_path / "onnx" / "int8.onnx",
        "-a",
        made / "one",
    ]
    done = run(*words, "-o", tmp_path / "bundle", "--json")
    assert done.code == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["precision"] == "int8"
    assert manifest["verification"]["base"]["bit_equal"]
    fails(2, "is int8 already", *words, "-o", tmp_path / "other", "--precision", "fp16")

    bundle = Bundle.open(tmp_path / "bundle")
    session = bundle.adapter_session()
    arrays = read_onnx_adapter(bundle.path / bundle.adapter("one").file)
    heads = [name for head in session.lora_inputs.heads for name in (head.weight, head.bias)]
    assert heads, "the head's own weights are quantized, so its LoRA inputs must be there"
    session.register("headless", lambda: {name: array for name, array in arrays.items() if name not in heads})
    inputs = bundle.preprocessor()(["w1 w2", "w3", "w4 w5", "w6"])
    alone = {name: session.run(inputs, name) for name in (None, "one", "headless")}
    assert len(alone[None][0]) == len(alone["headless"][0]) == len(bundle.labels)
    assert not np.array_equal(alone[None], alone["headless"])
    names = ["one", None, "headless", None]
    for row, (name, answer) in enumerate(zip(names, session.run(inputs, names), strict=True)):
        np.testing.assert_allclose(answer, alone[name][row], rtol=1e-5, atol=0.02)  # int8 rounds by the batch's range


def test_evaluation_data_is_given_by_adapter(made: Path, tmp_path: Path) -> None:
    data = text_data(tmp_path / "test.jsonl", rows=20)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps({**row, "label": "yes"}) + "\n" for row in rows))
    done = run("verify", made / "bundle", "--data", f"one={data}", "--json")
    assert done.code == 0, done.stderr
    scores = json.loads(done.stdout)["adapters"]["one"]["evaluation"]
    assert scores["examples"] == 20 and scores["onnx"] == scores["pytorch"]
    fails(3, "has no adapter 'nobody'", "verify", made / "bundle", "--data", f"nobody={data}")
    fails(2, f"--data {data} does not say which adapter it is for: write --data NAME={data}", "verify", made / "bundle",
          "--data", data)  # fmt: skip


def test_wrong_flags_are_explained(made: Path, tmp_path: Path) -> None:
    one, two = made / "one", made / "two"
    words = ["export", made / "base", "-o", tmp_path / "b"]
    fails(2, "--mode merged takes one --adapter, not 2", *words, "-a", one, "-a", two)
    fails(2, "--onnx goes with --mode branches", *words, "-a", one, "--onnx", "x.onnx")
    fails(2, "names 'one' twice", *words, "--mode", "branches", "-a", one, "-a", f"one={two}")
    fails(2, "--data is given for 'x'", *words, "--mode", "branches", "-a", one, "-a", two, "--data", "x=test.jsonl")
    fails(2, "The names are one, two.", *words, "--mode", "branches", "-a", one, "-a", two, "--data", "test.jsonl")
    fails(3, "ONNX model not found", *words, "--mode", "branches", "-a", one, "--onnx", tmp_path / "no.onnx")
    assert not (tmp_path / "b").exists()
    shown = run("inspect", made / "bundle")
    assert shown.code == 0 and "one" in shown.stdout and "all mixed in one batch" in shown.stdout
    fails(3, "no adapter 'x': it has one, two", "predict", made / "bundle", "w1", "-a", "x")
    fails(
        2, "--adapter is for bundles made with --mode branches", "predict", word_bundle(tmp_path / "w"), "w1", "-a", "x"
    )


@pytest.mark.rare
def test_bench_measures_every_use_of_the_branches(made: Path) -> None:
    words = ["--rounds", "1", "--seconds", "0.01", "--warmup", "1", "--threads", "1", "--batch", "2", "--length", "4"]
    done = run("bench", made / "bundle", *words, "--provider", "cpu", "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    uses = {item["use"]: item for item in result["contestants"] if item["engine"] == "onnx"}
    assert set(uses) == {"no adapter", "one adapter", "one adapter, specialized", "one for each row"}
    assert uses["one adapter"]["relative_error"] < 1e-5  # PyTorch runs that adapter merged
    assert uses["one adapter, specialized"]["relative_error"] < 1e-5
    assert "relative_error" not in uses["no adapter"]
    assert all(row["p50_ms"] > 0 for row in result["rows"])
