"""Spearman's correlation on scored pairs: measured at export and by verify, for adapters that were trained here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from rmlora.package import load_package
from rmlora.pooling import Pooling
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.embedder import Embedder
from tests.helpers.cli import fails, run, text_base
from tests.helpers.encoders import peft_vectors
from tests.helpers.similar_texts import scored_pairs, triplets, write_lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base, an adapter trained on scored pairs, and data."""
    directory = tmp_path_factory.mktemp("trained")
    base = text_base(directory / "base")
    train = write_lines(directory / "train.jsonl", scored_pairs(96))
    write_lines(directory / "test.jsonl", scored_pairs(30, seed=5))
    done = run(
        "train", "--task", "feature-extraction", "--base", base, "--train", train, "-o", directory / "adapter", "--pooling", "cls",
        "--epochs", "4", "--batch-size", "16", "--learning-rate", "2e-2", "--no-normalize",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    return directory


def expected(directory: Path) -> float:
    rows = [json.loads(line) for line in (directory / "test.jsonl").read_text().splitlines()]
    first, second = (
        peft_vectors(directory / "base", directory / "adapter", [row[name] for row in rows], mode="cls")
        for name in ("sentence1", "sentence2")
    )
    return float(spearmanr((first * second).sum(1), [row["score"] for row in rows]).statistic)


@pytest.mark.parametrize("mode", ["merged", "branches"])
def test_an_export_measures_the_correlation(trained: Path, tmp_path: Path, mode: str) -> None:
    named = "near=" if mode == "branches" else ""
    words = [
        "export",
        trained / "base",
        "--mode",
        mode,
        "-a",
        f"{named}{trained / 'adapter'}",
        "-o",
        tmp_path / "bundle",
    ]
    done = run(*words, "--data", f"{named}{trained / 'test.jsonl'}")
    assert done.code == 0, done.stderr
    bundle = Bundle.open(tmp_path / "bundle")
    assert (bundle.manifest.pooling.mode, bundle.manifest.pooling.source) == ("cls", "adapter")
    report = bundle.manifest.verification
    found = report.evaluation if mode == "merged" else report.adapters["near"].evaluation
    assert (found.metric, found.examples) == ("Spearman correlation", 30)
    assert found.onnx == pytest.approx(found.pytorch, abs=1e-6) == pytest.approx(expected(trained), abs=1e-6)
    got = Embedder.open(tmp_path / "bundle").embed(["w1 w5", "w9"], *(["near"] if mode == "branches" else []))
    want = peft_vectors(trained / "base", trained / "adapter", ["w1 w5", "w9"], mode="cls", normalize=False)
    np.testing.assert_allclose(got, want, atol=2e-5)

    if mode == "merged":
        done = run("verify", tmp_path / "bundle", "--data", trained / "test.jsonl", "--reference-only")
        assert done.code == 0 and "Spearman correlation on 30 examples" in done.stdout, done.stdout + done.stderr
        data = write_lines(tmp_path / "triplets.jsonl", triplets(4))
        fails(3, "holds triplets without: name a column of scores", "verify", tmp_path / "bundle", "--data", data)
        data = write_lines(tmp_path / "same.jsonl", [{**row, "score": 2} for row in scored_pairs(4)])
        fails(3, "All scores of the evaluation data", "verify", tmp_path / "bundle", "--data", data)


def test_a_merged_checkpoint_pools_as_trained(trained: Path, tmp_path: Path) -> None:
    assert run("merge", trained / "base", trained / "adapter", "-o", tmp_path / "merged").code == 0
    got = SentenceTransformer(str(tmp_path / "merged"), device="cpu").encode(["w1 w5", "w9"])
    want = peft_vectors(trained / "base", trained / "adapter", ["w1 w5", "w9"], mode="cls", normalize=False)
    np.testing.assert_allclose(got, want, atol=2e-6)

    other = tmp_path / "other"
    shutil.copytree(trained / "adapter", other)
    done = run("mix", trained / "adapter", other, "-o", tmp_path / "mixed")
    assert done.code == 0, done.stderr
    assert load_package(tmp_path / "mixed").pooling == Pooling("cls", normalize=False)
    record = json.loads((other / "rmlora.json").read_text())
    (other / "rmlora.json").write_text(json.dumps({**record, "pooling": {"mode": "mean", "normalize": True}}))
    message = "was trained with the pooling cls, not normalized and"
    fails(2, message, "mix", trained / "adapter", other, "-o", tmp_path / "second")
