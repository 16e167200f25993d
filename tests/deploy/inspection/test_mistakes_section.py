"""What a page says of right and wrong answers: all of few labels, the worst of many, and kinds of questions."""

from __future__ import annotations

from typing import Any

from rmlora_deploy.bundles.report import VerificationReport
from rmlora_deploy.inspection.mistakes_section import confusions, mistakes_section


def report(details: dict[str, Any] | None) -> VerificationReport:
    evaluation = {"data": "test.csv", "examples": 9, "metric": "accuracy", "onnx": 0.5}
    tolerance = dict.fromkeys(("relative_error", "rms_error", "agreement", "cosine", "metric_loss"), 0.1)
    whole: dict[str, Any] = {"date": "", "provider": "cpu", "tolerance": tolerance, "against": "PyTorch and PEFT",
                             "shapes": [], "passed": True}  # fmt: skip
    return VerificationReport.model_validate(
        {**whole, "evaluation": {**evaluation, **({"details": details} if details is not None else {})}}
    )


def figures(examples: int, f1: float) -> dict[str, float]:
    return {"examples": examples, "precision": f1, "recall": f1, "f1": f1}


def test_few_labels_are_a_matrix() -> None:
    found = report(
        {
            "per_class": {"a|b": figures(3, 0.5), "c": figures(1, 1.0), "never": figures(0, 0.0)},
            "confusion": {"a|b": {"a|b": 2, "c": 1}, "c": {"c": 1}},
        }
    )
    page = "\n".join(mistakes_section(found))
    assert "### Label by label\n" in page and "| a\\|b | 3 | 0.500 | 0.500 | 0.500 |" in page and "never" not in page
    assert "| right ↓ · given → | a\\|b | c |" in page and "| a\\|b | 2 | 1 |" in page and "| c | · | 1 |" in page
    assert list(confusions(found)) == ["### What it takes for what"]


def test_of_many_labels_the_hardest_and_the_commonest_mistakes_are_shown() -> None:
    names = [f"label {number}" for number in range(30)]
    perfect = {name: {name: 5} for name in names}
    found = report(
        {
            "per_class": {name: figures(5, number / 30) for number, name in enumerate(names)},
            "confusion": {**perfect, "label 0": {"label 1": 4, "label 2": 1}},
        }
    )
    page = "\n".join(mistakes_section(found))
    assert "The 20 hardest of 30 labels:" in page and "| label 19 |" in page and "| label 20 |" not in page
    assert (
        "5 mistakes; the commonest are\n\n| right | given | rows |\n| --- | --- | --- |\n| label 0 | label 1 | 4 |"
        in page
    )
    assert "Nothing is taken for anything else." in "\n".join(mistakes_section(report({"confusion": perfect})))


def test_questions_are_shown_by_kind() -> None:
    answered = {"examples": 7, "exact_match": 0.5, "f1": 0.75}
    page = "\n".join(mistakes_section(report({"with_answer": answered})))
    assert "### By kind of question\n" in page and "| with an answer | 7 | 0.500 | 0.750 |" in page
    assert "without an answer" not in page


def test_nothing_is_said_where_the_metric_says_all() -> None:
    assert mistakes_section(report(None)) == mistakes_section(None) == [] and confusions(None) == {}
