"""Training of answers in a text: questions with contexts, cross-entropy of where answers begin and end, exact match and F1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.answer_spans import LONGEST_ANSWER
from rmlora.errors import InputError, TrainingError, require
from rmlora.torch_models import TaskModel
from rmlora.training.data import Columns
from rmlora.training.question_data import load_questions
from rmlora.training.question_report import QuestionReport, distrust_answers
from rmlora.training.task_training import Evaluation, TaskTraining, TrainingData
from rmlora.wording import counted

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.trainer_init import BatchLoss
    from rmlora.training.features import Examples
    from rmlora.training.question_rows import QuestionRows

__all__ = ["QuestionTraining"]


class QuestionTraining(TaskTraining):
    """Training for :class:`rmlora.span_scores.SpanScores`."""

    def load(self) -> TrainingData:
        """Read questions, contexts and answers."""
        require("torchmetrics", "train")
        settings = self.settings
        splits = load_questions(
            settings.sources,
            Columns(settings.text_column, settings.label_column, settings.pair_column),
            settings.reading,
            validation_fraction=settings.validation_fraction,
            seed=settings.data_seed,
        )
        notes = [note for split in splits.values() for note in split.notes]
        train = splits["train"]
        if train.unanswerable == len(train.questions):
            raise InputError(f"No question of {train.source} has an answer: check --label-column.")
        self._may_lack = train.unanswerable > 0
        for name, split in splits.items():
            if split.unanswerable and not self._may_lack:
                notes.append(
                    f"{counted(split.unanswerable, 'question')} of the {name} data have no answer, and none of the training data: the "
                    "adapter always gives one."
                )
        return TrainingData(splits, notes=tuple(dict.fromkeys(notes)))

    def check_data(self, data: TrainingData, processor: Any) -> TrainingData:
        """Return the questions as windows of tokens, and say what cannot be learned."""
        rows: dict[str, Any] = {}
        notes = list(data.notes)
        for name, split in data.splits.items():
            pairs, answers = [item.pair for item in split.questions], [item.answers for item in split.questions]
            made: Any = self.task.inputs.examples(pairs, answers, processor, self.settings.token_limit)
            rows[name] = made
            notes += self._unlearned(made, split.source)
        return TrainingData(rows, notes=tuple(dict.fromkeys(notes)))

    def _unlearned(self, rows: QuestionRows, source: str) -> list[str]:
        limit, notes = self.settings.token_limit, []
        if len(rows.windows) > len(rows.questions):
            notes.append(
                f"The contexts of {counted(len(rows.questions), 'question')} of {source} are read in {len(rows.windows)} windows of up to "
                f"{limit} tokens."
            )
        if rows.unlearned:
            notes.append(
                f"{counted(rows.unlearned, 'answer')} of {source} fit into no window of {limit} tokens: they are not learned; raise "
                "--max-length."
            )
        if rows.long_answers:
            notes.append(
                f"{counted(rows.long_answers, 'answer')} of {source} have more than {LONGEST_ANSWER} tokens: answers so long are never "
                "given."
            )
        return notes

    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Accept every base: a head that it lacks is trained."""

    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return the windows with first and last token of the answers."""
        return dict(data.splits)

    def trainer(self, arguments: Mapping[str, Any], examples: Mapping[str, Examples], processor: Any) -> Trainer:
        """Return a trainer that measures whole answers, not single tokens."""
        from rmlora.training.question_trainer import GroupedQuestionTrainer, QuestionTrainer

        kind = GroupedQuestionTrainer if self.settings.group_by_length else QuestionTrainer
        return kind(may_lack=self._may_lack, **arguments)

    def batch_loss(self) -> BatchLoss:
        """Return the trainer's loss: the model's own takes both positions by other names."""
        from rmlora.training.question_rows import batch_loss

        return batch_loss

    def evaluate(self, trainer: Trainer, examples: Mapping[str, Examples], split: str) -> Evaluation:
        """Return F1, exact match and loss, of questions with and without answer too."""
        output: Any = trainer.predict(examples[split], metric_key_prefix=split)
        loss = output.metrics[f"{split}_loss"]
        if loss != loss:
            raise TrainingError(f"The trained model's {split} loss is NaN: lower --learning-rate.")
        report: QuestionReport = trainer.report  # type: ignore[attr-defined]
        details = {"with_answer": report.answered, "without_answer": report.unanswerable, "answers_given": report.given}
        scores = {"f1": report.f1, "exact_match": report.exact_match, "loss": loss}
        return Evaluation(scores, details, tuple(distrust_answers(report, split)))

    def metadata(self, model: PeftModel) -> dict[str, Any]:
        """Return that inputs are pairs, and whether a question may have no answer."""
        return {"input_form": "pair", "no_answer": self._may_lack}
