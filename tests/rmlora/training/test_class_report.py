"""Figures by label, and the warnings about an adapter that has learned little, on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rmlora.training.class_report import ClassReport, distrust, report_classes
from rmlora.training.result import explain_choice


def test_figures_by_label_are_those_worked_out_by_hand() -> None:
    truth = [0, 0, 0, 1, 1, 2]
    logits = np.log(
        [[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]
    )
    report = report_classes(logits, truth, ["a", "b", "c"])
    assert report.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert report.accuracy == pytest.approx(4 / 6)
    assert report.confidence == pytest.approx(0.8)
    assert report.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    content = report.to_dict()
    assert content["per_class"]["a"] == pytest.approx({"examples": 3, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert content["confusion"] == {"a": {"a": 2, "b": 1}, "b": {"a": 1, "b": 1}, "c": {"c": 1}}


def test_a_label_without_examples_counts_in_no_mean() -> None:
    report = report_classes([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], [0, 1], ["a", "b", "never"])
    assert report.macro_f1 == 1.0
    assert report.to_dict()["per_class"]["never"] == {"examples": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert "never" not in report.to_dict()["confusion"]


def confused(counts: list[list[int]], confidence: float = 0.95) -> ClassReport:
    return ClassReport(("ham", "spam"), np.array(counts), confidence)


def test_a_good_adapter_is_not_warned_of() -> None:
    assert distrust(confused([[430, 4], [3, 63]]), "validation") == []


@pytest.mark.parametrize("counts", [[[434, 0], [66, 0]], [[430, 4], [60, 6]]])
def test_the_majority_class_is_named(counts: list[list[int]]) -> None:
    assert "is about what always answering 'ham' reaches (0.8680)" in distrust(confused(counts), "validation")[0]


def test_worse_than_the_majority_class_is_said_and_a_tie_names_what_is_answered() -> None:
    worse = distrust(confused([[10, 0], [90, 0]]), "validation")[0]
    assert worse.startswith("The validation accuracy, 0.1000, is below what always answering 'spam' reaches (0.9000):")
    for answers, named in (([[0, 50], [0, 50]], "spam"), ([[50, 0], [50, 0]], "ham")):
        assert f"is about what always answering '{named}' reaches (0.5000)" in distrust(confused(answers), "test")[0]


def test_a_label_never_predicted_and_chance_are_named() -> None:
    never, unsure = distrust(confused([[434, 0], [66, 0]], confidence=0.52), "test")[1:]
    assert never == "The label 'spam' is never predicted for the test data."
    assert "has a probability of 0.52 on average, and chance is 0.50" in unsure


def test_the_choice_of_the_checkpoint_is_explained() -> None:
    rows = [
        {"step": 4, "epoch": 1.0, "loss": 1.1, "accuracy": 1.0, "macro_f1": 1.0},
        {"step": 8, "epoch": 2.0, "loss": 0.3, "accuracy": 1.0, "macro_f1": 1.0},
        {"step": 12, "epoch": 3.0, "loss": 0.4, "accuracy": 0.5, "macro_f1": 0.4},
    ]
    assert explain_choice(rows, 8, "accuracy") == (
        "Kept epoch 2 (step 8): best accuracy, 1.0000, reached 2 times; of these the lowest loss, 0.3000."
    )
    assert explain_choice(rows[1:], 8, "macro_f1") == "Kept epoch 2 (step 8): best macro F1 of 2 evaluations, 1.0000."
    assert explain_choice(rows, 8, "loss") == "Kept epoch 2 (step 8): lowest loss of 3 evaluations, 0.3000."
    assert explain_choice(rows[:1], 4, "accuracy") == "Kept epoch 1 (step 4): the only one evaluated, accuracy 1.0000."
    assert explain_choice(rows, None, "accuracy").startswith("Kept the last step")
