"""What the training of all vectors shares, of texts and of images: a loss over the vectors of a batch, and figures by cosine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rmlora.errors import ConfigError, TrainingError
from rmlora.pooling import Pooling, read_pooling
from rmlora.training.result import LOWER_IS_BETTER, metric_name
from rmlora.training.settings import BestMetric, TrainSettings
from rmlora.training.task_training import Evaluation, TaskTraining, TrainingData
from rmlora.training.vector_problem import VectorProblem

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.trainer_init import BatchLoss
    from rmlora.training.embedding_rows import VectorLoss
    from rmlora.training.features import Examples

__all__ = ["VectorTraining"]


class VectorTraining(TaskTraining):
    """Training for :class:`rmlora.outputs.PooledVector`. :meth:`load` sets the problem, and :meth:`check_model` the pooling."""

    _problem: VectorProblem
    _pooling: Pooling
    _loss: VectorLoss
    _width: int

    def _given_pooling(self, base: Path) -> Pooling | None:
        """Return the user's pooling, else that of the base's files; None if neither says it."""
        mode = self.settings.pooling
        return Pooling(mode) if mode is not None else read_pooling(base)

    def _normalized(self, pooling: Pooling) -> Pooling:
        """Return ``pooling``, normalized or not as the user says, if the user says it."""
        normalize = self.settings.normalize
        return pooling if normalize is None else replace(pooling, normalize=normalize)

    def check_data(self, data: TrainingData, processor: Any) -> TrainingData:
        """Return ``data``: texts are cut, and images scaled, to what the model takes."""
        return data

    def trainer(self, arguments: Mapping[str, Any], examples: Mapping[str, Examples], processor: Any) -> Trainer:
        """Return a trainer whose loss compares the vectors of a batch."""
        from rmlora.training.embedding_rows import VectorLoss

        self._loss = VectorLoss(self._problem.loss(), self.task.outputs, self._pooling)
        made: Trainer = self._trainer_class()(
            loss=self._loss,
            compute_metrics=lambda found: self._problem.metrics(found.predictions, np.asarray(found.label_ids)),
            **arguments,
        )
        return made

    def _trainer_class(self) -> type[Any]:
        from rmlora.training.embedding_trainer import EmbeddingTrainer

        return EmbeddingTrainer

    def batch_loss(self) -> BatchLoss:
        """Return the trainer's loss: an encoder returns vectors only."""
        return self._loss

    def evaluate(self, trainer: Trainer, examples: Mapping[str, Examples], split: str) -> Evaluation:
        """Return the metrics and the loss, and as details those of the base without the adapter."""
        scores = self._scores(trainer, examples, split)
        if scores["loss"] != scores["loss"]:
            raise TrainingError(f"The trained model's {split} loss is NaN: lower --learning-rate.")
        model = cast("PeftModel", trainer.accelerator.unwrap_model(trainer.model))
        with model.disable_adapter():
            base = self._scores(trainer, examples, split)
        metric = str(self.settings.best_metric)
        return Evaluation(scores, {"base": base}, tuple(_distrust(metric, scores, base, split)))

    def _scores(self, trainer: Trainer, examples: Mapping[str, Examples], split: str) -> dict[str, float]:
        found: Any = trainer.predict(examples[split], metric_key_prefix=split)
        self._width = int(found.predictions.shape[-1])
        names = [name for name in self._problem.best_metrics if name != "loss"]
        return {name: float(found.metrics[f"{split}_{name}"]) for name in [*names, "loss"]}

    def metadata(self, model: PeftModel) -> dict[str, Any]:
        """Return the pooling, the width of vectors, and what the rows were."""
        pooling = {"mode": self._pooling.mode, "normalize": self._pooling.normalize}
        return {"pooling": pooling, "dimensions": self._width, "trained_on": self._problem.name}

    def _completed(self) -> TrainSettings:
        """Return the settings with the metric that chooses the checkpoint.

        Raises:
            ConfigError: the rows have no such metric, or batches are too small to teach anything.
        """
        settings, problem = self.settings, self._problem
        if settings.batch_size < problem.fewest_rows:
            raise ConfigError(
                f"With --batch-size {settings.batch_size} {problem.name} teach nothing, since a row is compared with the others of its "
                f"batch: take {problem.fewest_rows} or more."
            )
        if settings.best_metric is None:
            return replace(settings, best_metric=cast(BestMetric, problem.best_metrics[0]))
        if settings.best_metric not in problem.best_metrics:
            raise ConfigError(
                f"best_metric must be one of {', '.join(problem.best_metrics)} for {problem.name}: change --best-metric."
            )
        return settings


def _distrust(metric: str, scores: Mapping[str, float], base: Mapping[str, float], split: str) -> list[str]:
    """Return a sentence if the base alone is as good."""
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    if (sign * scores[metric], -scores["loss"]) > (sign * base[metric], -base["loss"]):
        return []
    return [
        f"The {split} {metric_name(metric)}, {scores[metric]:.4f}, is not better than that of the base alone ({base[metric]:.4f}): the "
        "adapter has learned nothing that this data shows; check the data, lower --learning-rate, or train for more epochs."
    ]
