"""Numbers and several labels by command, from training to a bundle's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from rmlora.package import load_package
from rmlora.training.objective import mean_over_step
from rmlora.training.problem_choice import PROBLEMS
from rmlora.training.settings import TrainSettings
from tests.helpers.cli import WORDS, fails, run
from tests.rmlora.training.short_run import words_for

NAMES = ("red", "green", "blue")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rated(path: Path, count: int = 64, seed: int = 0) -> Path:
    """Write sentences whose rating is decided by their first word."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = [WORDS[number % 4], *rng.choice(WORDS[4:], size=rng.integers(1, 4))]
        rows.append({"text": " ".join(words), "stars": 0.5 * (number % 4)})
    return write(path, rows)


def tagged(path: Path, count: int = 64, seed: int = 0) -> Path:
    """Write sentences whose labels are named by words in them; some have none."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        chosen = np.flatnonzero(rng.random(3) < 0.5)
        words = [*(WORDS[label] for label in chosen), *rng.choice(WORDS[4:], size=2)]
        rows.append({"text": " ".join(words), "tags": [NAMES[label] for label in chosen]})
    return write(path, rows)


@pytest.mark.parametrize(
    ("make", "column", "problem", "metric"),
    [
        (rated, "stars", "regression", "Pearson correlation"),
        (tagged, "tags", "multi_label_classification", "micro F1"),
    ],
)
def test_from_training_to_answers(
    make: Any, column: str, problem: str, metric: str, base: Path, tmp_path: Path
) -> None:
    data, test = make(tmp_path / "train.jsonl"), make(tmp_path / "test.jsonl", 24, seed=1)
    adapter = tmp_path / "adapter"
    more = ["--threshold", "best"] if problem == "multi_label_classification" else []
    done = run(*words_for(base, data, adapter, "--label-column", column, "--test", test, "--epochs", "12", *more))
    assert done.code == 0, done.stderr
    assert f"best {metric}" in done.stdout and "not used" not in done.stdout
    package = load_package(adapter)
    assert package.problem_type == problem
    assert package.labels == (["stars"] if problem == "regression" else ["blue", "green", "red"])
    scores = package.metadata["metrics"]["test"]
    assert package.metadata["training"]["settings"]["problem_type"] == problem
    if problem == "regression":
        assert package.metadata["target_range"] == [[0.0, 1.5]]
        assert scores["mse"] == pytest.approx(scores["loss"], rel=1e-5)
        assert scores["pearson"] > 0.8
    else:
        assert scores["micro_f1"] > 0.6
        assert package.threshold is not None and f"| from a probability of {package.threshold:g} |" in (
            adapter / "README.md"
        ).read_text(encoding="utf-8")
        details = json.loads((adapter / "evaluation.json").read_text())["test"]["per_class"]
        assert set(details) == {"red", "green", "blue"}
    shown = run("inspect", adapter)
    assert shown.code == 0, shown.stderr
    assert problem.replace("_", " ") in shown.stdout.replace("_", " ")

    merged = run("merge", base, adapter, "-o", tmp_path / "merged-checkpoint")
    assert merged.code == 0, merged.stderr
    assert json.loads((tmp_path / "merged-checkpoint" / "config.json").read_text())["problem_type"] == problem
    for mode, words in (("merged", ["-a", adapter]), ("branches", ["-a", f"one={adapter}"])):
        bundle = tmp_path / mode
        exported = run("export", base, *words, "-o", bundle, "--mode", mode)
        assert exported.code == 0, exported.stderr
        measured = str(test) if mode == "merged" else f"one={test}"
        verified = run("verify", bundle, "--data", measured, "--label-column", column, "--json")
        assert verified.code == 0, verified.stderr
        found = json.loads(verified.stdout)
        evaluation = found.get("evaluation") or found["adapters"]["one"]["evaluation"]
        assert evaluation["metric"] == metric
        key = "pearson" if problem == "regression" else "micro_f1"
        assert evaluation["onnx"] == pytest.approx(scores[key], abs=1e-3)
        predicted = run("predict", bundle, f"{WORDS[2]} {WORDS[9]}", "--json")
        assert predicted.code == 0, predicted.stderr


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_loss_is_that_of_transformers_however_a_step_is_divided(problem: Any) -> None:
    from transformers import BertConfig

    torch.manual_seed(0)
    logits = torch.randn(6, 3)
    targets = {
        "single_label_classification": torch.tensor([0, 2, 1, 1, 0, 2]),
        "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 0, 0]]).repeat(3, 1),
        "regression": torch.randn(6, 3),
    }[problem]
    settings = TrainSettings("base", "data.csv", Path("out"), problem_type=problem)
    loss = mean_over_step(PROBLEMS[problem].loss(settings, ["a", "b", "c"], targets.tolist()))
    config = BertConfig(problem_type=problem, num_labels=3)
    whole = ForSequenceClassificationLoss(targets, logits, config)
    parts = [
        loss(Outputs(logits[rows]), targets[rows], num_items_in_batch=targets.numel())
        for rows in (slice(0, 1), slice(1, 6))
    ]
    torch.testing.assert_close(loss(Outputs(logits), targets), whole)
    torch.testing.assert_close(sum(parts), whole)


class Outputs:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def test_settings_that_do_not_fit_the_targets_are_refused(base: Path, tmp_path: Path) -> None:
    stars, tags = rated(tmp_path / "stars.jsonl"), tagged(tmp_path / "tags.jsonl")
    start = words_for(base, stars, tmp_path / "adapter", "--label-column", "stars")
    fails(
        2,
        "best_metric must be one of pearson, spearman, mse, mae, loss for regression",
        *start,
        "--best-metric",
        "accuracy",
    )
    fails(
        2,
        "for multi_label_classification",
        *start,
        "--problem-type",
        "multi_label_classification",
        "--best-metric",
        "mse",
    )
    text = words_for(base, stars, tmp_path / "adapter", "--task", "text-generation", "--problem-type", "regression")
    fails(2, "--problem-type is for text-classification, image-classification, but the task is text-generation", *text)
    other = words_for(base, tags, tmp_path / "adapter", "--label-column", "tags")
    fails(3, "Line 1 of", *other, "--problem-type", "regression")
    fails(3, "has several labels", *other, "--problem-type", "single_label_classification")
    fails(2, "names 1 label", *other, "--labels", "red")
    assert not (tmp_path / "adapter.run").exists()
    done = run(*start, "--labels", "rating", "--problem-type", "regression", "--epochs", "1", "--best-metric", "mae")
    assert done.code == 0, done.stderr
    assert load_package(tmp_path / "adapter").labels == ["rating"]
    assert "absolute error" in done.stdout
