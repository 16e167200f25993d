"""What the scores of a classifier are trained for, as transformers' ``problem_type`` says: one object for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from rmlora.scoring import ProblemType
from rmlora.training.label_column import LabelColumn
from rmlora.training.split_evaluation import Evaluation

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.training.settings import TrainSettings

__all__ = ["Problem"]

FloatArray = npt.NDArray[np.float64]


class Problem(ABC):
    """A kind of targets. Instances have no state."""

    name: ClassVar[ProblemType]
    """As in transformers' configurations."""
    best_metrics: ClassVar[tuple[str, ...]]
    """Validation metrics that can choose the checkpoint to keep; the first is the default."""
    own_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings of a run that only this kind of targets has."""
    fewest_labels: ClassVar[int] = 2
    """Outputs that a head has at least."""

    @abstractmethod
    def order(self, column: LabelColumn, given: Sequence[str] | None) -> tuple[str, ...]:
        """Return a name for each output.

        Args:
            column: of the training data.
            given: names that the user gave; None if none.

        Raises:
            InputError: the column has too few labels, or cells that fit no head.
            ConfigError: the column has a label that ``given`` lacks.
        """

    @abstractmethod
    def encode(self, column: LabelColumn, labels: Sequence[str], *, given: bool) -> list[Any]:
        """Return the target of every row, as a dataset holds it.

        Args:
            column: of any split.
            labels: of :meth:`order`.
            given: True if the user named them; cells may then number them from 0.

        Raises:
            InputError: a cell does not fit; it is named by its line.
        """

    def strata(self, targets: Sequence[Any]) -> list[int]:
        """Return a number for every row: of each number, a share is split off for validation."""
        return [0] * len(targets)

    @abstractmethod
    def present(self, targets: Sequence[Any], labels: Sequence[str]) -> set[int]:
        """Return the indices of the labels that occur."""

    @abstractmethod
    def loss(
        self, settings: TrainSettings, labels: Sequence[str], targets: Sequence[Any]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss as a function of scores ``[rows, outputs]`` and a batch's targets, summed over the rows.

        Args:
            settings: of the run.
            labels: of :meth:`order`.
            targets: of the training data.

        Raises:
            ConfigError: a setting of the loss does not fit the labels.
        """

    @abstractmethod
    def metrics(self, logits: FloatArray, targets: npt.NDArray[Any], settings: TrainSettings) -> dict[str, float]:
        """Return what is measured at every evaluation.

        Args:
            logits: ``[rows, outputs]``.
            targets: as :meth:`encode` returns them, stacked.
            settings: of the run.
        """

    @abstractmethod
    def evaluate(
        self, logits: FloatArray, targets: npt.NDArray[Any], labels: Sequence[str], split: str, settings: TrainSettings
    ) -> Evaluation:
        """Return scores (without the loss), details and warnings for a split; arguments as :meth:`metrics`."""

    def decided(self, logits: FloatArray, targets: npt.NDArray[Any], settings: TrainSettings) -> Problem:
        """Return the problem with what the validation data decide; arguments as :meth:`metrics`."""
        return self

    def metadata(self, settings: TrainSettings, targets: Sequence[Any]) -> dict[str, Any]:
        """Return fields of ``rmlora.json`` that only this kind of targets has; ``targets`` are those of the training data."""
        return {}
