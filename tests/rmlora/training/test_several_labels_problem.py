"""Several labels per row as targets: reading, metrics by hand, and warnings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from rmlora.errors import ConfigError, InputError
from rmlora.scoring import scoring_of
from rmlora.tasks import get_task
from rmlora.training.data import Columns, load_splits
from rmlora.training.label_column import LabelColumn
from rmlora.training.settings import TrainSettings
from rmlora.training.several_labels_problem import SeveralLabelsProblem

PROBLEM = SeveralLabelsProblem()
SETTINGS = TrainSettings("base", "data.csv", Path("out"), problem_type="multi_label_classification")


def column(*cells: str, declared: tuple[str, ...] | None = None) -> LabelColumn:
    return LabelColumn("tags", "data.csv", list(cells), range(2, len(cells) + 2), "line", declared)


def test_labels_are_found_in_lists_and_between_marks() -> None:
    for cells in (['["b", "a"]', "[]", '["c"]'], ["b|a", "[]", "c"], ["['b', 'a']", "[]", "['c']"]):
        labels = PROBLEM.order(column(*cells), None)
        assert labels == ("a", "b", "c")
        targets = PROBLEM.encode(column(*cells), labels, given=False)
        assert targets == [[1.0, 1.0, 0.0], [0.0] * 3, [0.0, 0.0, 1.0]]
    assert PROBLEM.present([[1.0, 0.0], [0.0, 0.0]], ["a", "b"]) == {0}
    assert PROBLEM.order(column("[10, 9]", "[1]"), None) == ("1", "9", "10")
    assert PROBLEM.encode(column("[0]", "b, c", "[1, 0]"), ["a", "b, c"], given=True) == [[1, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("cells", "error", "message"),
    [
        (["[]", "[]"], InputError, "has no label in 'tags'"),
        (["a", "a"], InputError, r"has only one label \('a'\) in 'tags'"),
        (['{"a": 1}', "b"], InputError, "^Line 2 of data.csv has the labels"),
        (['["a", null]', "b"], InputError, "^Line 2 of data.csv has the labels"),
        (["[0, 1, 1]", "[1, 0, 0]"], ConfigError, "mark every label with 0 or 1"),
    ],
)
def test_cells_that_name_no_labels_are_refused(cells: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PROBLEM.order(column(*cells), None)


def test_lists_of_numbers_have_the_names_that_a_dataset_declares(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["x", "y", "None"]))})
    rows = {"text": [f"w{n}" for n in range(8)], "label": [[0, 2], [], [1], [1, 0]] * 2}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")
    splits = load_splits(
        get_task("text-classification"), str(tmp_path / "data.parquet"), None, None, columns=Columns(),
        validation_fraction=0.25, seed=1,
    )  # fmt: skip
    assert splits.problem.name == "multi_label_classification" and splits.labels == ("x", "y", "None")
    encoded = dict(zip(*(a + b for a, b in zip(splits.train, splits.validation, strict=True)), strict=True))
    assert [encoded[f"w{n}"] for n in range(4)] == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]]


def test_an_unknown_label_is_named_by_its_line() -> None:
    with pytest.raises(InputError, match="^Line 3 of data.csv has the label 'x', which the training data lacks"):
        PROBLEM.encode(column("a", "a|x"), ["a", "b"], given=False)


def test_metrics_are_those_worked_out_by_hand() -> None:
    right = np.array([[1.0, 0, 0], [1, 1, 0], [0, 0, 0]])
    logits = np.array([[2.0, -1, -1], [3, -1, -2], [-1, -1, 4]])
    found = PROBLEM.metrics(logits, right, SETTINGS)
    assert found["micro_f1"] == pytest.approx(4 / 6)  # 2 right, 3 chosen, 3 to choose
    assert found["macro_f1"] == pytest.approx((1 + 0) / 2)  # over the labels that occur
    assert found["samples_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["subset_accuracy"] == pytest.approx(1 / 3)
    assert found["micro_f1"] == pytest.approx(scoring_of("multi_label_classification", 3).measure(logits, right))
    nothing = PROBLEM.metrics(-np.ones((2, 3)), np.zeros((2, 3)), SETTINGS)
    assert set(nothing.values()) == {1.0}


def test_figures_and_warnings() -> None:
    right = np.array([[1.0, 0, 0], [1, 1, 0]])
    found = PROBLEM.evaluate(np.array([[2.0, -1, -1], [3, -1, -2]]), right, ["a", "b", "c"], "test", SETTINGS)
    assert found.details["per_class"]["a"] == {"examples": 2, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert found.warnings == ("The label 'b' is never predicted for the test data.",)
    none = PROBLEM.evaluate(-np.ones((2, 3)), right, ["a", "b", "c"], "test", SETTINGS)
    assert none.warnings[0].startswith("No label of any row of the test data has a probability of at least 0.5")


def test_a_better_threshold_of_the_validation_data_is_named() -> None:
    right = np.array([[1.0, 0], [0, 1], [1, 0]])
    logits = np.log([[0.4, 0.1], [0.1, 0.8], [0.35, 0.2]]) - np.log([[0.6, 0.9], [0.9, 0.2], [0.65, 0.8]])
    found = PROBLEM.evaluate(logits, right, ["a", "b"], "validation", SETTINGS)
    assert found.details["micro_f1_by_threshold"]["0.3"] == 1.0
    assert found.details["micro_f1_by_threshold"]["0.5"] == pytest.approx(0.5)
    assert "at a probability of 0.3 instead of 0.5 would reach a micro F1 of 1.0000" in found.warnings[-1]
    tested = PROBLEM.evaluate(logits, right, ["a", "b"], "test", SETTINGS)  # test data chooses nothing
    assert not any("at a probability of 0.3" in line for line in tested.warnings)


def test_the_best_threshold_for_the_validation_data_is_taken_and_recorded() -> None:
    right = np.array([[1.0, 0], [0, 1], [1, 0]])
    logits = np.log([[0.4, 0.1], [0.1, 0.8], [0.35, 0.2]]) - np.log([[0.6, 0.9], [0.9, 0.2], [0.65, 0.8]])
    settings = replace(SETTINGS, threshold="best")
    assert PROBLEM.decided(logits, right, SETTINGS) == PROBLEM
    assert (
        PROBLEM.metrics(logits, right, settings)["micro_f1"] == 1.0
    )  # checkpoints are compared at what would be decided
    problem = PROBLEM.decided(logits, right, settings)
    assert problem.metadata(settings, []) == {"threshold": 0.3}  # 0.3 and no other has an F1 of 1
    found = problem.evaluate(logits, right, ["a", "b"], "validation", settings)
    assert found.scores["micro_f1"] == 1.0 and found.warnings == ()
    assert PROBLEM.decided(6 * (right - 0.5), right, settings).metadata(settings, []) == {"threshold": 0.5}
    fixed = replace(SETTINGS, threshold=0.45)
    assert PROBLEM.metrics(logits, right, fixed)["micro_f1"] == pytest.approx(0.5)
    assert PROBLEM.metadata(fixed, []) == {"threshold": 0.45}
    assert scoring_of("multi_label_classification", 2, 0.3).measure(logits, right) == 1.0


def test_an_adapter_that_chooses_everything_is_warned_of() -> None:
    right = np.array([[1.0, 0], [0, 1]])
    found = PROBLEM.evaluate(np.zeros((2, 2)), right, ["a", "b"], "test", replace(SETTINGS, threshold=0.3))
    assert found.warnings[0].startswith(
        "Every label of every row of the test data has a probability of at least 0.3: the adapter"
    )


def test_thresholds_that_fit_nothing_are_refused() -> None:
    for threshold in (0.0, 1.0, "0.3", "worst"):
        with pytest.raises(ConfigError, match="threshold must be 'best' or between 0 and 1"):
            replace(SETTINGS, threshold=threshold)
    with pytest.raises(ConfigError, match="--threshold is for multi_label_classification"):
        replace(SETTINGS, problem_type="regression", threshold=0.3)
