"""How well questions are answered: exact match and F1 of words, as SQuAD defines them, by torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.answer_spans import AnswerSpan, best_spans
from rmlora.errors import require
from rmlora.training.answer_cells import Answer

__all__ = ["QuestionReport", "answer_texts", "distrust_answers", "report_answers"]


@dataclass(frozen=True)
class QuestionReport:
    """The figures of one split, from 0 to 1."""

    exact_match: float
    """Share of answers that are a right one, but for articles, punctuation, capitals and spaces."""
    f1: float
    """Mean over questions of the words that an answer shares with the right one nearest to it."""
    answered: dict[str, float]
    """The same of the questions that have an answer, and their number."""
    unanswerable: dict[str, float]
    """The same of those that have none: right if no answer is given."""
    given: int
    """Questions that got an answer."""


def answer_texts(windows: Sequence[Sequence[Any]], contexts: Sequence[str], *, may_lack: bool) -> list[str]:
    """Return the best answer to each question; empty where there is none.

    Args:
        windows: of each question, as :func:`rmlora.answer_spans.scored_tokens` returns them.
        contexts: of each question.
        may_lack: a question may have no answer.
    """
    spans: list[AnswerSpan] = [best_spans(parts, may_lack=may_lack)[0] for parts in windows]
    return [context[span.start : span.end] for span, context in zip(spans, contexts, strict=True)]


def report_answers(predicted: Sequence[str], right: Sequence[Sequence[Answer]]) -> QuestionReport:
    """Compare the answers to questions, at least one, with all that are right.

    Raises:
        DependencyError: torchmetrics is not installed.
    """
    require("torchmetrics", "train")
    groups = {kind: [number for number, answers in enumerate(right) if bool(answers) == kind] for kind in (True, False)}
    figures = {
        kind: {"examples": len(rows), **_squad([predicted[n] for n in rows], [right[n] for n in rows])}
        for kind, rows in groups.items()
    }
    total = len(right)

    def mean(name: str) -> float:
        return sum(part[name] * part["examples"] for part in figures.values()) / total

    return QuestionReport(mean("exact_match"), mean("f1"), figures[True], figures[False], sum(map(bool, predicted)))


def _squad(predicted: Sequence[str], right: Sequence[Sequence[Answer]]) -> dict[str, float]:
    if not predicted:
        return {"exact_match": 0.0, "f1": 0.0}
    from torchmetrics.functional.text import squad

    got: Any = [{"prediction_text": text, "id": str(number)} for number, text in enumerate(predicted)]
    wanted: Any = [
        {
            "answers": {"text": [a.text for a in answers] or [""], "answer_start": [a.start for a in answers] or [0]},
            "id": str(number),
        }
        for number, answers in enumerate(right)
    ]
    return {name: float(value) / 100 for name, value in squad(got, wanted).items()}


def distrust_answers(report: QuestionReport, split: str) -> list[str]:
    """Return a sentence for everything that speaks against trusting the adapter; empty if nothing does."""
    if report.answered["examples"] and not report.answered["f1"]:
        found = "is answered even in part" if report.given else "gets an answer, though some have one"
        return [
            f"No question of the {split} data {found}: the adapter has learned nothing. Train for more epochs, or check data and "
            "--learning-rate."
        ]
    return []
