"""The transformers ``Trainer`` for answers in a text: windows are trained one by one, and measured question by question."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmlora.answer_spans import scored_tokens
from rmlora.training.best_checkpoint import BestCheckpointTrainer
from rmlora.training.question_report import QuestionReport, answer_texts, report_answers
from rmlora.training.question_rows import QuestionRows, kept_of_spans, span_loss
from rmlora.training.sampler import LengthGroupingTrainer

__all__ = ["GroupedQuestionTrainer", "QuestionTrainer"]


class QuestionTrainer(BestCheckpointTrainer):
    """A trainer whose metrics are those of the best answer over all windows of a question.

    Args:
        may_lack: a question may have no answer.
    """

    report: QuestionReport
    """Of the last evaluation."""

    def __init__(self, *, may_lack: bool, **options: Any) -> None:
        super().__init__(
            compute_loss_func=span_loss,
            preprocess_logits_for_metrics=kept_of_spans,
            compute_metrics=self._measure,
            **options,
        )
        self._may_lack = may_lack
        self._measured: QuestionRows | None = None

    def evaluation_loop(self, dataloader: Any, *args: Any, **options: Any) -> Any:
        """Evaluate the rows of ``dataloader``."""
        self._measured = dataloader.dataset
        return super().evaluation_loop(dataloader, *args, **options)

    def _measure(self, prediction: Any) -> dict[str, float]:
        rows = self._measured
        assert rows is not None  # noqa: S101 - metrics are computed in an evaluation
        kept = np.asarray(prediction.predictions)
        windows: list[list[Any]] = [[] for _ in rows.questions]
        for scores, window, owner in zip(kept, rows.windows, rows.owners, strict=True):
            windows[owner].append(scored_tokens(scores[:, :2], window.arrays))
        contexts = [pair.second for pair in rows.questions]
        self.report = report_answers(answer_texts(windows, contexts, may_lack=self._may_lack), rows.answers)
        loss = float(kept[:, 0, 2].mean(dtype=np.float64)) / 2  # of the beginning and of the end
        return {"loss": loss, "f1": self.report.f1, "exact_match": self.report.exact_match}


class GroupedQuestionTrainer(QuestionTrainer, LengthGroupingTrainer):
    """The same with batches of windows of similar length."""
