"""What a metric is measured on, whatever the task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

__all__ = ["EvaluationData"]


@dataclass(frozen=True)
class EvaluationData(ABC):
    """Labeled examples to measure the metric on."""

    source: str
    inputs: list[Any]

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the metric; larger is better."""

    @abstractmethod
    def judge(self, outputs: Sequence[npt.NDArray[Any]]) -> float:
        """Return the metric of a model.

        Args:
            outputs: for every example what :meth:`rmlora.outputs.Outputs.of_row` takes from the model's output.
        """
