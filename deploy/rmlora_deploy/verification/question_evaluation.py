"""Questions with their right answers, to measure how well a model finds them in their contexts (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.errors import require
from rmlora.training.answer_cells import Answer
from rmlora.training.data import Columns
from rmlora.training.question_data import read_questions
from rmlora.training.question_report import answer_texts, report_answers
from rmlora_deploy.bundles.report import EvaluationDetails
from rmlora_deploy.verification.evaluation_data import EvaluationData, Judgement, MeasuredModel

__all__ = ["QuestionEvaluation"]


@dataclass(frozen=True)
class QuestionEvaluation(EvaluationData):
    """Questions, contexts and answers."""

    answers: list[tuple[Answer, ...]]
    """The right ones of every question; none if the context does not answer it."""
    may_lack: bool
    """True if the model may say that there is no answer."""

    @classmethod
    def read(cls, source: str, columns: Columns, model: MeasuredModel) -> QuestionEvaluation:
        """Read data; arguments and errors as :func:`rmlora_deploy.verification.evaluation.read_evaluation`."""
        require("torchmetrics", "train")
        questions = read_questions(source, columns).questions
        answers = [item.answers for item in questions]
        may_lack = model.no_answer if model.no_answer is not None else not all(answers)
        return cls(source, [item.pair for item in questions], answers, may_lack)

    @property
    def metric(self) -> str:
        """Mean F1 of the words of answers, as SQuAD defines it."""
        return "answer F1"

    def judge(self, outputs: Sequence[Any]) -> Judgement:
        """Return F1 of the answers in the windows of each question, and the figures of those with and without an answer."""
        contexts = [pair.second for pair in self.inputs]
        report = report_answers(answer_texts(outputs, contexts, may_lack=self.may_lack), self.answers)
        kinds = {"with_answer": report.answered, "without_answer": report.unanswerable}
        details = {name: figures for name, figures in kinds.items() if figures["examples"]}
        return Judgement(report.f1, EvaluationDetails.model_validate(details))
