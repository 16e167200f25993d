"""The recipes of the int8 table, on a tiny model, and the worker that says how far their answers are from float32's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.contest import ROOT, Contestant, run_worker, worker
from benchmarks.int8_recipes import ONNXRUNTIME, OURS
from benchmarks.results import RESULTS
from benchmarks.worker import run_batches
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.calibration import CalibrationData
from rmlora_deploy.runtime.graph_logits import graph_logits
from rmlora_deploy.runtime.providers import create_session
from tests.helpers.bundles import make_bundle

TEXTS = [" ".join(["good", "day", "bad", "night", "red", "blue"][: 1 + number % 6]) for number in range(40)]
INT8_PRODUCTS = {"MatMulIntegerToFloat", "MatMulInteger", "DequantizeLinear"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle("bert", tmp_path_factory.mktemp("recipes"))


@pytest.mark.parametrize("name", [*OURS, *ONNXRUNTIME])
def test_every_recipe_multiplies_in_8_bits_and_stays_near_float32(bundle: Bundle, name: str, tmp_path: Path) -> None:
    preprocessor, target = bundle.preprocessor(), tmp_path / "int8.onnx"
    (OURS | ONNXRUNTIME)[name](
        bundle.model_path, target, CalibrationData.of("texts", preprocessor, TEXTS, bundle.task.outputs)
    )
    assert INT8_PRODUCTS & {node.op_type for node in onnx.load(target).graph.node}
    batch = preprocessor(TEXTS)
    exact, found = (graph_logits(create_session(path))(batch) for path in (bundle.model_path, target))
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < 0.2


def test_a_worker_compares_the_vectors_of_its_second_graph(bundle: Bundle, tmp_path: Path) -> None:
    inputs = bundle.preprocessor()(TEXTS)
    vectors = run_batches(graph_logits(bundle.session()), inputs)
    vectors[0] *= -1  # the opposite direction: one cosine of -1
    np.savez(check := tmp_path / "vectors.npz", vectors=vectors, **inputs)
    job = {"bundle": str(bundle.path), "provider": "cpu", "seconds": 0.0, "shapes": [], "check_vectors": str(check)}
    second = {"model": str(bundle.model_path)}
    report = run_worker(Contestant("ours", worker("encoder_ours"), {**job, "vectors": second}))
    assert report["worst_cosine"] == pytest.approx(-1)
    assert report["mean_cosine"] == pytest.approx(1 - 2 / len(TEXTS))
    assert "mean_cosine" not in run_worker(Contestant("ours", worker("encoder_ours"), job))


def test_the_table_of_the_export_page_is_that_of_the_results() -> None:
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    for row in json.loads((RESULTS / "int8.json").read_text(encoding="utf-8"))["rows"]:
        ratios = [f"{figure['ratio']:.2f}" for figure in row["figures"].values()]
        cosines = f"{row['mean_cosine']:.3f} · {row['worst_cosine']:.3f}" if "mean_cosine" in row else "–"
        cells = [row["name"], *ratios, f"{row['accuracy']:.4f}", f"{row['logit_error']:.1e}", cosines]
        assert f"| {' | '.join(cells)} |" in page, (
            "copy the figures of benchmarks/results/int8.json into docs/export.md"
        )
