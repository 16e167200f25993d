"""How well generated answers agree with the right ones: exact match, JSON, ROUGE-L."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rmlora.errors import require

__all__ = ["ANSWER_METRICS", "AnswerMetric", "check_metric", "score_answers"]

AnswerMetric = Literal["exact_match", "json", "rougeL"]


def check_metric(metric: AnswerMetric | None) -> None:
    """Raise :class:`DependencyError` if a metric needs a package that is not installed."""
    if metric == "rougeL":
        require("torchmetrics", "metrics")


def score_answers(metric: AnswerMetric, answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return figures from 0 to 1, the one called ``metric`` first.

    Args:
        metric: ``exact_match``: share of answers equal to the reference but for white space around them; ``json``: share that
            are JSON with the reference's value, whatever the order of keys, and ``json_valid``, the share that are JSON;
            ``rougeL``: mean F-measure of the longest common subsequence of words (Lin, 2004).
        answers: generated.
        references: right ones, at least one.
    """
    return ANSWER_METRICS[metric](answers, references)


def _exact_match(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    pairs = zip(answers, references, strict=True)
    return {"exact_match": _share([answer.strip() == reference.strip() for answer, reference in pairs])}


def _json(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    got, wanted = [_parsed(answer) for answer in answers], [_parsed(reference) for reference in references]
    return {
        "json": _share([a is not None and a == b for a, b in zip(got, wanted, strict=True)]),
        "json_valid": _share([value is not None for value in got]),
    }


def _rouge_l(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    from torchmetrics.functional.text import rouge_score

    scores: Mapping[str, Any] = rouge_score(list(answers), list(references), rouge_keys="rougeL")
    return {"rougeL": float(scores["rougeL_fmeasure"])}


ANSWER_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], dict[str, float]]] = {
    "exact_match": _exact_match,
    "json": _json,
    "rougeL": _rouge_l,
}
"""Name → function of answers and references."""


def _parsed(text: str) -> list[Any] | None:
    """Return the value in a list, so that ``null`` is a value too; None if the text is not JSON."""
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return None


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)
