"""Labeled images, to measure how often a model's vectors find another image of the same label (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import require
from rmlora.training.data import Columns
from rmlora.training.image_groups import read_image_groups
from rmlora.training.neighbor_metrics import recall_at_1
from rmlora_deploy.verification.evaluation_data import EvaluationData, Judgement, MeasuredModel

__all__ = ["NeighborEvaluation"]


@dataclass(frozen=True)
class NeighborEvaluation(EvaluationData):
    """Images, each with a label."""

    labels: npt.NDArray[np.int64]
    """Number of the label of every image."""

    @classmethod
    def read(cls, source: str, columns: Columns, model: MeasuredModel) -> NeighborEvaluation:
        """Read data; arguments and errors as :func:`rmlora_deploy.verification.evaluation.read_evaluation`."""
        require("sklearn", "train")
        data = read_image_groups(model.task, source, columns)
        return cls(source, list(data.images), np.array(data.numbers))

    @property
    def metric(self) -> str:
        """The share of images whose most similar other image has the same label."""
        return "recall@1"

    def judge(self, outputs: Sequence[npt.NDArray[Any]]) -> Judgement:
        """Return it for the vectors ``[width]`` of all images."""
        return Judgement(recall_at_1(np.stack(outputs), self.labels))
