"""The transformers ``Trainer`` for encoders: a loss over the vectors of all texts of a batch."""

from __future__ import annotations

from typing import Any

import torch

from rmlora.training.best_checkpoint import BestCheckpointTrainer
from rmlora.training.embedding_rows import VectorLoss
from rmlora.training.sampler import LengthGroupingTrainer

__all__ = ["EmbeddingTrainer", "GroupedEmbeddingTrainer"]


class EmbeddingTrainer(BestCheckpointTrainer):
    """A trainer that compares vectors; an evaluation's predictions are these, ``[rows, texts of a row, width]``.

    Under gradient accumulation the loss is the mean of the forward passes', each of which compares its own rows only.

    Args:
        loss: of a batch.
    """

    def __init__(self, *, loss: VectorLoss, **options: Any) -> None:
        super().__init__(**options)
        self._loss = loss
        self.model_accepts_loss_kwargs = False  # so that the trainer divides by the number of forward passes

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Return the loss of a batch."""
        return self._loss(model, inputs)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return the loss, the vectors ``[rows, texts of a row, width]`` and the targets."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            vectors = self._loss.vectors(model, inputs)
            loss = self._loss.of_vectors(vectors, inputs["labels"])
        return loss, vectors.transpose(0, 1).contiguous(), inputs["labels"]


class GroupedEmbeddingTrainer(EmbeddingTrainer, LengthGroupingTrainer):
    """The same with batches of rows of similar length."""
