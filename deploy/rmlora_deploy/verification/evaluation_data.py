"""What a metric is measured on, whatever the task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.tasks import Task
from rmlora.text_pair import InputForm
from rmlora_deploy.bundles.report import EvaluationDetails

__all__ = ["EvaluationData", "Judgement", "MeasuredModel"]


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """What reading labeled data needs to know of the model that is measured on it."""

    task: Task
    labels: Sequence[str]
    """In the order of its scores."""
    problem: str | None
    """Problem type, or the function that turns its scores into answers."""
    form: InputForm | None = None
    """What the adapter was trained on; None takes single texts and pairs."""
    no_answer: bool | None = None
    """Whether the adapter learned that a question may have no answer; None takes that from the data."""
    threshold: float | None = None
    """Probability from which a label applies, where several may; None is one half."""


@dataclass(frozen=True)
class Judgement:
    """How well a model does."""

    metric: float
    details: EvaluationDetails | None = None
    """What it gets right and wrong; None if the metric says all."""


@dataclass(frozen=True)
class EvaluationData(ABC):
    """Labeled examples to measure the metric on."""

    source: str
    inputs: list[Any]

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the metric; larger is better."""

    @property
    def examples(self) -> int:
        """Number of what is right or wrong; here one for each input."""
        return len(self.inputs)

    @abstractmethod
    def judge(self, outputs: Sequence[Any]) -> Judgement:
        """Return how well a model does.

        Args:
            outputs: for every input what :meth:`rmlora.outputs.Outputs.of_parts` makes of what
                :meth:`rmlora.outputs.Outputs.of_row` takes from the model's outputs.
        """
