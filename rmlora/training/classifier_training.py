"""Training of classifiers, of rows with one label, several, or numbers (:class:`rmlora.training.problem.Problem`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmlora.errors import TrainingError
from rmlora.text_pair import form_of
from rmlora.torch_models import TaskModel
from rmlora.training.data import Columns, load_splits
from rmlora.training.task_training import Evaluation, TaskTraining, TrainingData

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.training.features import Examples

__all__ = ["ClassifierTraining"]


class ClassifierTraining(TaskTraining):
    """Training for :class:`rmlora.outputs.ClassScores`, with texts or images."""

    def load(self) -> TrainingData:
        """Read labeled rows, make targets of the labels, and complete the settings by what they are."""
        settings, inputs = self.settings, self.task.inputs
        splits = load_splits(
            self.task,
            settings.train,
            settings.validation,
            settings.test,
            columns=Columns(getattr(settings, inputs.column_option), settings.label_column, settings.pair_column),
            validation_fraction=settings.validation_fraction,
            seed=settings.data_seed,
            labels=settings.labels,
            reading=settings.reading,
            problem_type=settings.problem_type,
        )
        self._problem, self.settings = splits.problem, settings.for_problem(splits.problem.name)
        self._loss = splits.problem.loss(self.settings, splits.labels, splits.train[1])
        return TrainingData(splits.by_name(), splits.labels, splits.notes, splits.problem.name)

    def check_data(self, data: TrainingData, processor: Any) -> TrainingData:
        """Return ``data``: rows are cut or scaled to what the model takes."""
        return data

    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Accept every base: a head that it lacks is trained."""

    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return texts, pairs of texts or images with their targets."""
        self._labels, self._targets = data.labels, data.splits["train"][1]
        self._form = {"input_form": form_of(data.splits["train"][0])} if self.task.inputs.takes_pairs else {}
        make = self.task.inputs.examples
        limit = self.settings.token_limit if self.task.inputs.varies_in_length else 0  # images have no tokens
        return {name: make(inputs, targets, processor, limit) for name, (inputs, targets) in data.splits.items()}

    def trainer(self, arguments: Mapping[str, Any], examples: Mapping[str, Examples], processor: Any) -> Trainer:
        """Return a trainer whose loss is a mean over all targets of a step."""
        from rmlora.training.best_checkpoint import BestCheckpointTrainer
        from rmlora.training.objective import mean_over_step, scores_of
        from rmlora.training.sampler import LengthGroupingTrainer

        kind: type[Trainer] = LengthGroupingTrainer if self.settings.group_by_length else BestCheckpointTrainer
        return kind(
            compute_metrics=lambda found: self._problem.metrics(
                scores_of(found), np.asarray(found.label_ids), self.settings
            ),
            compute_loss_func=mean_over_step(self._loss),
            **arguments,
        )

    def evaluate(self, trainer: Trainer, examples: Mapping[str, Examples], split: str) -> Evaluation:
        """Return the problem's metrics and the loss, with the figures of every label or output."""
        from rmlora.training.objective import scores_of

        output: Any = trainer.predict(examples[split], metric_key_prefix=split)
        loss = float(output.metrics[f"{split}_loss"])
        if loss != loss:
            raise TrainingError(f"The trained model's {split} loss is NaN: lower --learning-rate.")
        scores, targets = scores_of(output), np.asarray(output.label_ids)
        if split == "validation":
            self._problem = self._problem.decided(scores, targets, self.settings)
        found = self._problem.evaluate(scores, targets, self._labels, split, self.settings)
        return replace(found, scores={**found.scores, "loss": loss})

    def metadata(self, model: PeftModel) -> dict[str, Any]:
        """Return the labels, what the scores are and what else belongs to it, and whether inputs are single texts or pairs."""
        return {
            "labels": list(self._labels),
            "problem_type": self._problem.name,
            **self._problem.metadata(self.settings, self._targets),
            **self._form,
        }
