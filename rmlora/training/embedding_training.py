"""Training of vectors for texts: pairs, scored pairs and triplets, with the losses and evaluators of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rmlora.errors import ConfigError, TrainingError, require
from rmlora.pooling import Pooling, check_padding, read_pooling, write_pooling
from rmlora.processors import save_processor
from rmlora.torch_models import TaskModel
from rmlora.training.embedding_columns import EmbeddingColumns
from rmlora.training.embedding_data import load_embedding_data
from rmlora.training.embedding_problem import EMBEDDING_PROBLEMS
from rmlora.training.result import LOWER_IS_BETTER, metric_name
from rmlora.training.settings import BestMetric, TrainSettings
from rmlora.training.task_training import Evaluation, TaskTraining, TrainingData

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.trainer_init import BatchLoss
    from rmlora.training.embedding_rows import VectorLoss
    from rmlora.training.features import Examples

__all__ = ["EmbeddingTraining"]


class EmbeddingTraining(TaskTraining):
    """Training for :class:`rmlora.outputs.SentenceVector`."""

    _loss: VectorLoss

    def load(self) -> TrainingData:
        """Read rows of texts, and complete the settings by what they are."""
        require("sentence_transformers", "train")
        settings = self.settings
        splits = load_embedding_data(
            settings.sources,
            EmbeddingColumns(
                settings.text_column, settings.pair_column, settings.negative_column, settings.label_column
            ),
            settings.reading,
            validation_fraction=settings.validation_fraction,
            seed=settings.data_seed,
        )
        train = splits["train"]
        self._problem = EMBEDDING_PROBLEMS[train.kind]
        self.settings = _complete(settings, self._problem.name, self._problem.best_metrics)
        if settings.batch_size == 1 and self._problem.needs_company:
            raise ConfigError(
                f"With --batch-size 1 {self._problem.name} teach nothing, since a row is compared with the others of its batch: take 2 "
                "or more."
            )
        *names, last = [f"'{name}'" for name in train.columns.texts]
        scored = f" with the score in '{train.columns.score}'" if train.columns.score else ""
        notes = [f"The rows of {train.source} are {train.kind} of {', '.join(names)} and {last}{scored}."]
        notes += [note for split in splits.values() for note in split.notes]
        for name, split in splits.items():
            notes += self._problem.check(split, name, self._remedy(name))
        return TrainingData(splits, notes=tuple(dict.fromkeys(notes)))

    def _remedy(self, split: str) -> str:
        """Return what to do about a split whose rows do not suffice."""
        if self.settings.validation is not None or split == "test":
            return "give other data"
        fraction = "raise --validation-fraction, " if split == "validation" else ""
        return f"add rows, {fraction}or give --validation"

    def check_data(self, data: TrainingData, processor: Any) -> TrainingData:
        """Return ``data``: texts are cut to what the model takes."""
        return data

    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Choose the pooling: the user's, else the base's, else the mean of all tokens, normalized."""
        mode, normalize = self.settings.pooling, self.settings.normalize
        pooling = Pooling(mode) if mode is not None else read_pooling(base) or Pooling()
        self._pooling = pooling if normalize is None else replace(pooling, normalize=normalize)

    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return the texts of all rows as tokens."""
        from rmlora.training.embedding_rows import EmbeddingRows

        check_padding(self._pooling, processor)
        inputs, limit = self.task.inputs, self.settings.token_limit
        return {
            name: EmbeddingRows(split.texts, self._problem.targets(split), inputs, processor, limit)
            for name, split in data.splits.items()
        }

    def trainer(self, arguments: Mapping[str, Any], examples: Mapping[str, Examples], processor: Any) -> Trainer:
        """Return a trainer whose loss compares the vectors of a batch."""
        from rmlora.training.embedding_rows import VectorLoss
        from rmlora.training.embedding_trainer import EmbeddingTrainer, GroupedEmbeddingTrainer

        self._loss = VectorLoss(self._problem.loss(), self.task.outputs, self._pooling)
        kind = GroupedEmbeddingTrainer if self.settings.group_by_length else EmbeddingTrainer
        return kind(
            loss=self._loss,
            compute_metrics=lambda found: self._problem.metrics(found.predictions, np.asarray(found.label_ids)),
            **arguments,
        )

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
        names = [name for name in self._problem.best_metrics if name != "loss"]
        return {name: float(found.metrics[f"{split}_{name}"]) for name in [*names, "loss"]}

    def metadata(self, model: PeftModel) -> dict[str, Any]:
        """Return the pooling, the width of vectors, and what the rows were."""
        pooling = {"mode": self._pooling.mode, "normalize": self._pooling.normalize}
        encoder: Any = model.get_base_model()
        self._width = int(encoder.config.get_text_config().hidden_size)
        return {"pooling": pooling, "dimensions": self._width, "trained_on": self._problem.name}

    def write_files(self, directory: Path, processor: Any) -> None:
        """Write the files with which sentence-transformers loads the package."""
        write_pooling(directory, self._pooling, width=self._width, max_length=self.settings.token_limit)
        save_processor(processor, directory, source=self.settings.base)


def _complete(settings: TrainSettings, kind: str, best_metrics: tuple[str, ...]) -> TrainSettings:
    """Return the settings with the metric that chooses the checkpoint; raise :class:`ConfigError` if the rows have no such metric."""
    if settings.best_metric is None:
        return replace(settings, best_metric=cast(BestMetric, best_metrics[0]))
    if settings.best_metric not in best_metrics:
        raise ConfigError(f"best_metric must be one of {', '.join(best_metrics)} for {kind}: change --best-metric.")
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
