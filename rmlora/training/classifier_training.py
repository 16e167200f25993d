"""Training of classifiers: labeled rows, cross-entropy, accuracy and F1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmlora.errors import TrainingError
from rmlora.text_pair import form_of
from rmlora.torch_models import TaskModel
from rmlora.training.class_report import distrust, report_classes
from rmlora.training.data import Columns, load_splits
from rmlora.training.table import Reading
from rmlora.training.task_training import Evaluation, TaskTraining, TrainingData

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.training.features import Examples

__all__ = ["ClassifierTraining"]


class ClassifierTraining(TaskTraining):
    """Training for :class:`rmlora.outputs.ClassScores`, with texts or images."""

    def load(self) -> TrainingData:
        """Read labeled rows, and number the labels."""
        settings, inputs = self.settings, self.task.inputs
        splits = load_splits(
            self.task,
            settings.train,
            settings.validation,
            settings.test,
            columns=Columns(getattr(settings, inputs.column_option), settings.label_column, settings.pair_column),
            validation_fraction=settings.validation_fraction,
            seed=settings.seed,
            labels=settings.labels,
            reading=Reading(skip_empty=settings.skip_empty, encoding=settings.encoding),
        )
        return TrainingData(splits.by_name(), splits.labels, splits.notes)

    def check_data(self, data: TrainingData, processor: Any) -> TrainingData:
        """Return ``data``: rows are cut or scaled to what the model takes."""
        return data

    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Accept every base: a head that it lacks is trained."""

    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return texts or images with the numbers of their labels."""
        self._labels = data.labels
        self._form = {"input_form": form_of(data.splits["train"][0])} if self.task.inputs.takes_pairs else {}
        make = self.task.inputs.examples
        limit = self.settings.token_limit
        return {name: make(inputs, numbers, processor, limit) for name, (inputs, numbers) in data.splits.items()}

    def trainer(self, arguments: Mapping[str, Any], examples: Mapping[str, Examples], processor: Any) -> Trainer:
        """Return a trainer whose loss is a mean over all examples of a step."""
        from rmlora.training.best_checkpoint import BestCheckpointTrainer
        from rmlora.training.objective import classification_metrics, cross_entropy
        from rmlora.training.sampler import LengthGroupingTrainer

        kind: type[Trainer] = LengthGroupingTrainer if self.settings.group_by_length else BestCheckpointTrainer
        return kind(compute_metrics=classification_metrics, compute_loss_func=cross_entropy, **arguments)

    def evaluate(self, trainer: Trainer, examples: Mapping[str, Examples], split: str) -> Evaluation:
        """Return accuracy, macro F1, loss and confidence, with the figures of every label."""
        output: Any = trainer.predict(examples[split], metric_key_prefix=split)
        loss = float(output.metrics[f"{split}_loss"])
        if loss != loss:
            raise TrainingError(f"The trained model's {split} loss is NaN: lower --learning-rate.")
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        report = report_classes(logits, np.asarray(output.label_ids), self._labels)
        scores = {
            "accuracy": report.accuracy,
            "macro_f1": report.macro_f1,
            "loss": loss,
            "confidence": report.confidence,
        }
        return Evaluation(scores, report.to_dict(), tuple(distrust(report, split)))

    def metadata(self, model: PeftModel) -> dict[str, Any]:
        """Return the labels, what kind of answer the scores are, and whether inputs are single texts or pairs."""
        return {"labels": list(self._labels), "problem_type": "single_label_classification", **self._form}
