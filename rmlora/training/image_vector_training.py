"""Training of vectors for images: those with the same label shall be similar, with a loss over all triplets of a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from rmlora.errors import require
from rmlora.pooling import Pooling
from rmlora.torch_models import TaskModel
from rmlora.training.data import Columns
from rmlora.training.embedding_evaluators import Vectors
from rmlora.training.image_groups import load_image_groups, single_images
from rmlora.training.neighbor_metrics import recall_at_1
from rmlora.training.task_training import TrainingData
from rmlora.training.vector_problem import NO_MODEL, VectorProblem
from rmlora.training.vector_training import VectorTraining

if TYPE_CHECKING:
    from torch.nn import Module

    from rmlora.training.features import Examples

__all__ = ["ImageVectorTraining", "LabeledImages"]

_MARGIN = 0.2
"""How much less similar an image of another label shall be, in cosine."""
_NO_TOKENS = 0
"""Images are not cut to a length."""


class LabeledImages(VectorProblem):
    """Images with labels: two with the same one shall be more similar than two with different ones."""

    name = "labeled images"
    best_metrics: ClassVar[tuple[str, ...]] = ("recall_at_1", "loss")
    fewest_rows = 4

    def loss(self) -> Module:
        """Return the mean over all triplets of the batch that the margin is not kept in, by cosine."""
        from sentence_transformers.sentence_transformer.losses import (
            BatchAllTripletLoss,
            BatchHardTripletLossDistanceFunction,
        )

        return BatchAllTripletLoss(NO_MODEL, BatchHardTripletLossDistanceFunction.cosine_distance, _MARGIN)

    def metrics(self, vectors: Vectors, targets: npt.NDArray[Any]) -> dict[str, float]:
        """Return the share of images whose most similar other image has the same label."""
        return {"recall_at_1": recall_at_1(vectors[:, 0], targets)}


class ImageVectorTraining(VectorTraining):
    """Training for :class:`rmlora.image_vector.ImageVector`."""

    def load(self) -> TrainingData:
        """Read images with labels, and complete the settings."""
        require("sentence_transformers", "train")
        settings = self.settings
        splits = load_image_groups(
            self.task,
            settings.sources,
            Columns(settings.image_column, settings.label_column),
            settings.reading,
            validation_fraction=settings.validation_fraction,
            seed=settings.data_seed,
        )
        self._problem = LabeledImages()
        self.settings = self._completed()
        notes = [note for split in splits.values() for note in split.notes]
        notes += [note for name, split in splits.items() for note in single_images(split, name)]
        return TrainingData(splits, notes=tuple(dict.fromkeys(notes)))

    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Choose the pooling: the user's, else the base's files', else the best that the model has, normalized."""
        from rmlora.model_pooling import model_pooling

        processor = self.task.inputs.load_processor(base, trust_remote_code=self.settings.trust_remote_code)
        given = self._given_pooling(base)
        mode = model_pooling(loaded, base, self.task, processor, mode=given.mode if given is not None else None)
        self._pooling = self._normalized(replace(given or Pooling(), mode=mode))

    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return the images with numbers for their labels; those to measure on in an order that mixes the labels of a batch."""
        made: dict[str, Examples] = {}
        for name, split in data.splits.items():
            if name != "train":
                split = split.only(np.random.default_rng(0).permutation(len(split.images)).tolist())
            made[name] = self.task.inputs.examples(split.images, split.numbers, processor, _NO_TOKENS)
        return made

    def _trainer_class(self) -> type[Any]:
        from rmlora.training.label_pairs import LabelPairsTrainer

        return LabelPairsTrainer
