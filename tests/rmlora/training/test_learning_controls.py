"""Early stopping, weights of labels and label smoothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from rmlora.errors import ConfigError
from rmlora.package import load_package
from rmlora.training.one_label_problem import OneLabelProblem
from rmlora.training.result import evaluations_without_gain
from rmlora.training.settings import TrainSettings
from tests.helpers.cli import fails, run
from tests.rmlora.training.short_run import assert_equal, words_for

LABELS = ["ham", "spam"]


def loss(settings: dict[str, object], targets: list[int], logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    made = TrainSettings("base", "data.csv", Path("out"), **settings)  # type: ignore[arg-type]
    return OneLabelProblem().loss(made, LABELS, targets)(logits, numbers)


def test_balanced_weights_are_one_on_average_and_count_labels_alike() -> None:
    targets = [0] * 6 + [1] * 2
    logits, numbers = torch.zeros(8, 2), torch.tensor(targets)
    single = loss({}, targets, logits[:1], numbers[:1])
    balanced = {"class_weights": "balanced"}
    assert loss(balanced, targets, logits, numbers) == pytest.approx(8 * float(single))
    ham, spam = loss(balanced, targets, logits[:6], numbers[:6]), loss(balanced, targets, logits[6:], numbers[6:])
    assert float(ham) == pytest.approx(float(spam))
    heavy = loss({"class_weights": {"spam": 3}}, targets, logits[6:], numbers[6:])
    assert float(heavy) == pytest.approx(float(spam))  # 2 × 3 against 6 × 1
    assert loss(balanced, [0, 0], logits[:2], numbers[:2]) == pytest.approx(2 * float(single))  # no example of spam


def test_label_smoothing_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    logits, numbers = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    theirs = LabelSmoother(epsilon=0.2)({"logits": logits}, numbers)
    torch.testing.assert_close(loss({"label_smoothing": 0.2}, [0, 1], logits, numbers) / 5, theirs)


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="names the label 'eggs', but the data's are ham, spam"):
        loss({"class_weights": {"eggs": 2}}, [0, 1], torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    for settings, message in (
        ({"class_weights": "equal"}, "must be 'balanced' or weights by label"),
        ({"class_weights": {"ham": 0}}, "The weight of 'ham' must be positive"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"warmup_ratio": 1.0}, "warmup_ratio must be at least 0 and less than 1, not 1.0"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm must be 0 or more, and finite"),
        ({"weight_decay": float("nan")}, "weight_decay must be 0 or more, and finite"),
        (
            {"problem_type": "regression", "label_smoothing": 0.1},
            "--label-smoothing is for single_label_classification",
        ),
        ({"task": "text-generation", "class_weights": "balanced"}, "--class-weights is for text-classification"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainSettings("base", "data.csv", Path("out"), **settings)  # type: ignore[arg-type]


def test_evaluations_without_gain_are_counted_from_the_first_best() -> None:
    assert evaluations_without_gain([], lower_is_better=False) == 0
    assert evaluations_without_gain([0.1, 0.5, 0.5, 0.4], lower_is_better=False) == 2
    assert evaluations_without_gain([0.1, 0.5], lower_is_better=True) == 1


def test_a_run_without_gain_stops_and_is_not_continued(base: Path, data: Path, tmp_path: Path) -> None:
    words = words_for(base, data, tmp_path / "adapter", "--epochs", "30", "--eval-steps", "3", "--patience", "2",
                      "--learning-rate", "2e-2", "--label-smoothing", "0.1", "--class-weights", "balanced")  # fmt: skip
    done = run(*words)
    assert done.code == 0, done.stderr
    first = load_package(tmp_path / "adapter").metadata
    steps = first["training"]["steps"]
    history = json.loads((tmp_path / "adapter" / "evaluation.json").read_text())["history"]
    values = [item["accuracy"] for item in history]
    assert steps < 30 * 6 and [item["step"] for item in history] == list(range(3, steps + 1, 3))
    assert evaluations_without_gain(values, lower_is_better=False) == 2
    assert evaluations_without_gain(values[:-1], lower_is_better=False) < 2
    assert "2 evaluations without a better accuracy." in " ".join(done.stdout.split())

    shutil.move(tmp_path / "adapter", tmp_path / "before")  # as if killed before the package was written
    again = run(*words)
    assert again.code == 0, again.stderr
    assert_equal(tmp_path / "adapter", tmp_path / "before")
    assert load_package(tmp_path / "adapter").metadata["training"]["steps"] == steps

    shutil.rmtree(tmp_path / "adapter")  # as if killed one evaluation earlier: the count goes on
    shutil.rmtree(max((tmp_path / "adapter.run").glob("checkpoint-*"), key=lambda path: int(path.name[11:])))
    resumed = run(*words)
    assert resumed.code == 0, resumed.stderr
    assert_equal(tmp_path / "adapter", tmp_path / "before")
    assert load_package(tmp_path / "adapter").metadata["training"]["steps"] == steps
    assert np.isfinite(first["metrics"]["validation"]["loss"])


def test_weights_come_from_flags_and_yaml(base: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"base: {base}\ntrain: {data}\nepochs: 1\nclass_weights: {{red: 3}}\neval_steps: 4\n"
    )
    done = run("train", "--config", tmp_path / "run.yaml", "-o", tmp_path / "adapter")
    assert done.code == 0, done.stderr
    settings = load_package(tmp_path / "adapter").metadata["training"]["settings"]
    assert settings["class_weights"] == {"red": 3.0} and settings["eval_steps"] == 4
    words = words_for(base, data, tmp_path / "no")
    fails(2, "'heavy' is not NAME=NUMBER, such as spam=16", *words, "--class-weights", "heavy")
    fails(2, "names the label 'yellow'", *words, "--class-weights", "yellow=2")
    assert not (tmp_path / "no.run").exists()
