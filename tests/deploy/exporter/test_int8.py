"""Merged int8 graphs: calibrated on the user's data, or rounded by the batch; which bits, which products, which refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from rmlora.outputs import ClassScores
from rmlora.sample_data import draw_image
from rmlora_converters.graph.locate.products import find_products
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import read_manifest
from rmlora_deploy.exporter.calibration import MOST_SAMPLES, CalibrationData, calibrate
from rmlora_deploy.verification.compare import accepted, widened
from rmlora_deploy.verification.verify_merged_bundle import verify_bundle
from tests.converters.test_quantize_products import WIDTH, model_of, node, tokens_input, weight
from tests.helpers.bundles import make_bundle, make_sources
from tests.helpers.cli import fails, run, text_data
from tests.helpers.encoders import make_encoder
from tests.helpers.rarely import rarely


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with base, adapter and data of the tiny BERT, and a bundle calibrated on the data."""
    directory = tmp_path_factory.mktemp("int8")
    make_sources("bert", directory)
    labeled(directory / "test.jsonl")
    done = run(*words(directory), "--data", directory / "test.jsonl", "-o", directory / "bundle")
    assert done.code == 0, done.stderr
    assert "activations rounded to ranges measured on 150 inputs of test.jsonl" in " ".join(done.stdout.split())
    return directory


def labeled(path: Path) -> Path:
    return text_data(path, rows=200)


def words(directory: Path) -> list[str | Path]:
    return [
        "export",
        directory / "base",
        "-a",
        directory / "adapter",
        "--labels",
        "red,green,blue",
        "--precision",
        "int8",
    ]


def products_of(bundle: Path) -> list[onnx.NodeProto]:
    return [item for item in onnx.load(bundle / "model.onnx").graph.node if item.op_type == "MatMulIntegerToFloat"]


def largest_weight(bundle: Path) -> int:
    graph = onnx.load(bundle / "model.onnx").graph
    stored = {item.name: item for item in graph.initializer}
    arrays = [numpy_helper.to_array(stored[item.input[1]]) for item in products_of(bundle)]
    return max(int(np.abs(array.astype(int)).max()) for array in arrays)


def test_the_manifest_says_how_it_was_rounded(made: Path) -> None:
    manifest = read_manifest(made / "bundle" / "manifest.json")
    entry = manifest.quantization
    assert entry is not None and manifest.verification is not None and manifest.verification.passed
    assert (entry.weight_bits, entry.activations, entry.calibrated_on, entry.samples) == (
        8,
        "static",
        "test.jsonl",
        150,
    )
    assert entry.products == len(products_of(made / "bundle")) >= 12
    assert largest_weight(made / "bundle") == 127
    operators = manifest.model.operators
    assert "QuantizeLinear" in operators and "DynamicQuantizeLinear" not in operators


def test_a_row_does_not_depend_on_the_rows_around_it(made: Path) -> None:
    bundle = Bundle.open(made / "bundle")
    session, preprocessor = bundle.session(), bundle.preprocessor()
    texts = ["w1 w2 w3", "w4 w5 w6", "w7 w8 w9"]
    (together,) = session.run(None, preprocessor(texts))
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(session.run(None, preprocessor([text]))[0][0], together[row])


def test_calibration_is_deterministic_and_needs_no_labels(made: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    rows = [json.loads(line)["text"] for line in (made / "test.jsonl").read_text().splitlines()]
    texts.write_text("\n".join(["text", *rows, ""]))
    for name in ("one", "two"):
        done = run(*words(made), "--calibration", texts, "-o", tmp_path / name, "--json")
        assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["quantization"]["calibrated_on"] == "texts.csv"
    graphs = [(tmp_path / name / "model.onnx").read_bytes() for name in ("one", "two")]
    assert graphs[0] == graphs[1] == (made / "bundle" / "model.onnx").read_bytes()


def test_without_data_every_batch_has_its_own_range(made: Path, tmp_path: Path) -> None:
    done = run(*words(made), "-o", tmp_path / "bundle")
    assert done.code == 0, done.stderr
    assert "With --data or --calibration they are rounded to fixed ranges" in " ".join(done.stdout.split())
    manifest = read_manifest(tmp_path / "bundle" / "manifest.json")
    assert manifest.quantization is not None and manifest.quantization.to_dict() == {
        "weight_bits": 8,
        "activations": "dynamic",
        "products": len(products_of(tmp_path / "bundle")),
        "balanced": manifest.quantization.balanced,
    }
    assert "DynamicQuantizeLinear" in manifest.model.operators


def test_seven_bits_are_chosen_and_recorded(made: Path, tmp_path: Path) -> None:
    done = run(*words(made), "--int8-bits", "7", "-o", tmp_path / "bundle", "--json", "--data", made / "test.jsonl")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["quantization"]["weight_bits"] == 7
    assert largest_weight(tmp_path / "bundle") == 64
    branches = run(
        *words(made)[:2], "-a", f"one={made / 'adapter'}", "--mode", "branches", "--precision", "int8", "--int8-bits", "7",
        "-o", tmp_path / "branches", "--json",
    )  # fmt: skip
    assert branches.code == 0, branches.stderr
    assert "quantization" not in json.loads(branches.stdout) or json.loads(branches.stdout)["quantization"] is None


@pytest.mark.parametrize(
    "name",
    ["vit", *map(rarely, ("gpt2", "distilbert", "llama"))],
)
def test_other_architectures(name: str, tmp_path: Path) -> None:
    image = name == "vit"
    if image:
        (tmp_path / "images").mkdir()
        rows = ["image"]
        for number in range(40):
            draw_image(number).save(tmp_path / "images" / f"{number}.png")
            rows.append(f"images/{number}.png")
        (tmp_path / "inputs.csv").write_text("\n".join([*rows, ""]))
    else:
        labeled(tmp_path / "inputs.jsonl")
    source = tmp_path / ("inputs.csv" if image else "inputs.jsonl")
    bundle = make_bundle(name, tmp_path, precision="int8", calibration=str(source))
    entry, report = bundle.manifest.quantization, bundle.manifest.verification
    assert entry is not None and report is not None and report.passed
    assert entry.products >= 8 and entry.held_out_error is not None
    held = entry.held_out_error["static"] <= 1.5 * entry.held_out_error["dynamic"]
    assert entry.activations == ("static" if held else "dynamic") and (entry.reason is None) == held
    known = entry.stored_inputs_error
    assert known is not None and known.rows == 16 and known.not_finite == 0
    later = verify_bundle(bundle, bundle.preprocessor(), None)
    assert later.passed and later.tolerance == widened(accepted("int8"), known)


def test_what_is_far_off_on_stored_inputs_from_the_start_passes_later(made: Path, tmp_path: Path) -> None:
    done = run(*words(made), "--calibration", made / "test.jsonl", "-o", tmp_path / "bundle")
    assert done.code == 0, done.stderr
    file = tmp_path / "bundle" / "reference.safetensors"
    arrays = load_file(file)
    other = {name: 1.3 * array if name.endswith("/logits") else array for name, array in arrays.items()}
    save_file(other, file)  # now the graph is far from the stored outputs, as on images unlike those of the calibration
    manifest = tmp_path / "bundle" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"]["reference.safetensors"] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(values))
    verify = ("verify", tmp_path / "bundle", "--reference-only")
    done = run(*verify)
    assert done.code == 6 and "in the root mean square (allowed 0.15)" in done.stderr
    values["quantization"]["stored_inputs_error"].update(rms_relative_error=0.24, max_relative_error=0.3)
    manifest.write_text(json.dumps(values))
    done = run(*verify)
    assert done.code == 0 and "rms 0.3." in done.stdout, done.stderr


def test_ranges_that_do_not_hold_for_other_inputs_are_not_used(made: Path, tmp_path: Path) -> None:
    lines = (made / "test.jsonl").read_text().splitlines()
    narrow = [json.dumps({"text": "w1 w1 w1"})] * 3
    (tmp_path / "narrow.jsonl").write_text(
        "\n".join([*narrow, json.dumps({"text": json.loads(lines[0])["text"]})] * 10)
    )
    done = run(*words(made), "--calibration", tmp_path / "narrow.jsonl", "-o", tmp_path / "bundle")
    assert done.code == 0, done.stderr
    assert "because with ranges measured on narrow.jsonl, inputs that were held out came out" in " ".join(
        done.stdout.split()
    )
    entry = read_manifest(tmp_path / "bundle" / "manifest.json").quantization
    assert entry is not None and entry.activations == "dynamic" and entry.calibrated_on is None
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:20]))
    done = run(*words(made), "--calibration", tmp_path / "few.jsonl", "-o", tmp_path / "other")
    assert "because 20 inputs are too few to measure ranges on, which takes 24" in " ".join(done.stdout.split())


def test_vectors_are_calibrated_on_texts(tmp_path: Path) -> None:
    base = make_encoder("bert", tmp_path, ranks={"one": 2})
    labeled(tmp_path / "texts.jsonl")
    done = run(
        "export", base, "-a", tmp_path / "one", "--precision", "int8", "--calibration", tmp_path / "texts.jsonl",
        "-o", tmp_path / "bundle", "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert set(manifest["quantization"]["held_out_error"]) == {"static", "dynamic"}
    assert manifest["verification"]["onnx"]["min_cosine"] > 0.99


def outlier_graph(shared: int) -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    """Return nine products in a row and inputs for them, with a channel a thousand times the others that no weight reads.

    The first ``shared`` products have the same weight, and that cannot be balanced for each of their inputs.
    """
    nodes: list[ir.Node] = []
    weights, last = [weight(f"w{number}", WIDTH, WIDTH) for number in range(9)], tokens_input()
    for item in weights:
        item.const_value.numpy()[3] = 0  # type: ignore[union-attr]
    huge = weight("huge", WIDTH)
    huge.const_value.numpy()[:] = np.where(np.arange(WIDTH) == 3, 1000, 1)  # type: ignore[union-attr]
    for number in range(9):
        product = node("MatMul", last, weights[0 if number < shared else number], name=f"product{number}")
        squashed = node("Tanh", product.outputs[0], name=f"tanh{number}")
        scaled = node("Mul", squashed.outputs[0], huge, name=f"scaled{number}")
        nodes += [product, squashed, scaled]
        last = scaled.outputs[0]
    rng = np.random.default_rng(1)
    tokens = [rng.normal(size=(8, WIDTH)).astype(np.float32) for _ in range(4)]
    return model_of(nodes, *weights[:1], *weights[max(shared, 1) :], huge), [{"x": batch} for batch in tokens]


def test_balancing_leaves_nothing_in_float(tmp_path: Path) -> None:
    model, batches = outlier_graph(shared=1)
    found = calibrate(model, batches, tmp_path)
    assert found.kept == () and len(found.scales) == 9
    assert (
        sum(scale.balance is not None for scale in found.scales.values()) == 8
    )  # all but the first, whose input has no outlier


def test_what_8_bits_are_too_coarse_for_stays_float_up_to_a_bound(tmp_path: Path) -> None:
    model, batches = outlier_graph(shared=5)  # four inputs with the outlier that may not be balanced
    found = calibrate(model, batches, tmp_path)
    assert len(found.kept) == 1 and found.kept[0] in {f"product{number}" for number in range(1, 5)}
    assert len(found.scales) == 8
    assert {product.node.name for product in find_products(model.graph)} == {f"product{number}" for number in range(9)}
    assert len(model.graph.outputs) == 1  # the graph was not changed


def test_what_is_not_finite_stays_float(tmp_path: Path) -> None:
    model, _ = outlier_graph(shared=1)
    found = calibrate(model, [{"x": np.full((4, WIDTH), np.nan, np.float32)}], tmp_path)
    assert len(found.kept) == 9 and not found.scales


def test_at_most_so_many_samples_are_run_and_a_quarter_is_held_out() -> None:
    def preprocess(inputs: list[int]) -> Any:
        return {"x": np.array(inputs)}

    data = CalibrationData.of("x", preprocess, list(range(10_000)), ClassScores())  # type: ignore[arg-type]
    assert data.count == MOST_SAMPLES == 256
    assert [batch["x"].tolist() for batch in (data.batches[0], data.batches[3])] == [[0], [157]]
    assert len(data.batches) == 192 and sum(len(batch["x"]) for batch in data.held_out) == 64
    assert data.held_out[-1]["x"][-1] == 9_999


def test_options_that_change_nothing_are_refused(made: Path, tmp_path: Path) -> None:
    target = ["-o", tmp_path / "bundle"]
    plain = ["export", made / "base", "-a", made / "adapter", *target]
    fails(2, "--int8-bits goes with --precision int8, not fp32", *plain, "--int8-bits", "8")
    fails(
        2, "--calibration goes with --precision int8, not fp16", *plain, "--precision", "fp16", "--calibration", "x.csv"
    )
    branches = ["export", made / "base", "-a", f"one={made / 'adapter'}", "--mode", "branches", *target]
    fails(2, "--calibration goes with --mode merged", *branches, "--precision", "int8", "--calibration", "x.csv")
    (tmp_path / "other.csv").write_text("title\nw1 w2\n")
    fails(3, "has none of the columns", *words(made), *target, "--calibration", tmp_path / "other.csv")
    (tmp_path / "empty.csv").write_text("text\n\n")
    fails(3, "has no row with a 'text'", *words(made), *target, "--calibration", tmp_path / "empty.csv")
    assert not (tmp_path / "bundle").exists()


def test_large_weights_stay_beside_the_graph(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rmlora_converters.graph.files.model_file as graph_file

    monkeypatch.setattr(graph_file, "INLINE_LIMIT", 0)
    done = run(*words(made), "--data", made / "test.jsonl", "-o", tmp_path / "bundle")
    assert done.code == 0, done.stderr
    shutil.move(tmp_path / "bundle", tmp_path / "moved")
    assert {"model.onnx", "model.onnx.data"} <= {path.name for path in (tmp_path / "moved").iterdir()}
    texts = Bundle.open(made / "bundle").preprocessor()(["w1 w2 w3"])
    expected = Bundle.open(made / "bundle").session().run(None, texts)[0]
    np.testing.assert_array_equal(Bundle.open(tmp_path / "moved").session().run(None, texts)[0], expected)
