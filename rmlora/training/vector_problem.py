"""What rows teach an encoder, whatever they are rows of: a loss and figures, both over vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from rmlora.training.embedding_evaluators import Vectors

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["NO_MODEL", "VectorProblem"]

NO_MODEL: Any = None
"""Stands for the model in losses of sentence-transformers: vectors are computed outside of them."""


class VectorProblem(ABC):
    """What one kind of rows teaches. Instances have no state."""

    name: ClassVar[str]
    best_metrics: ClassVar[tuple[str, ...]]
    """Validation metrics that can choose the checkpoint, the default first."""
    fewest_rows: ClassVar[int]
    """Rows of the smallest batch that teaches anything."""

    @abstractmethod
    def loss(self) -> Module:
        """Return the loss of sentence-transformers; its ``compute_loss_from_embeddings`` takes vectors by column, and targets."""

    @abstractmethod
    def metrics(self, vectors: Vectors, targets: npt.NDArray[Any]) -> dict[str, float]:
        """Return figures by cosines.

        Args:
            vectors: ``[rows, texts or images of a row, width]``.
            targets: of the rows.
        """
