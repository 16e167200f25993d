"""What a model's scores (logits) mean, by the conventions of transformers' classification pipelines (numpy).

========================== ======= ======== ===================================== ==================
``problem_type``           outputs function meaning                               metric on data
========================== ======= ======== ===================================== ==================
regression                 any     none     a number for each output              Pearson correlation
multi_label_classification 2…      sigmoid  a probability for every label         micro F1
anything else              2…      softmax  one label out of several              accuracy
anything but regression    1       sigmoid  a score between 0 and 1 (rerankers)   Pearson correlation
========================== ======= ======== ===================================== ==================

``problem_type`` and the number of outputs are in the model's ``config.json``; the function is what the pipelines call
``function_to_apply``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from rmlora.errors import CheckpointError, InputError
from rmlora.label_lists import split_cell

__all__ = ["HALF", "FunctionToApply", "ProblemType", "Scoring", "SeveralLabels", "problem_type_in", "scoring_of"]

FloatArray = npt.NDArray[np.float64]
FunctionToApply = Literal["softmax", "sigmoid", "none"]
HALF = 0.5
"""Probability from which a label applies, where several may and nothing else is recorded."""
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


class Scoring(ABC):
    """A meaning of scores."""

    function: ClassVar[FunctionToApply]
    """What turns logits into what is shown."""
    is_probability: ClassVar[bool]
    """True if the results are probabilities of labels."""
    has_choice: ClassVar[bool]
    """True if the largest score decides something, so that two outputs can agree on it."""
    takes_lists: ClassVar[bool] = False
    """True if a cell of the label column may hold a list."""
    metric: ClassVar[str]
    """Name of the metric; larger is better."""

    @abstractmethod
    def apply(self, logits: npt.NDArray[Any]) -> FloatArray:
        """Return the results for ``logits [..., outputs]``, in the same shape."""

    @abstractmethod
    def answers(self, results: FloatArray) -> int:
        """Return how many of ``results [outputs]``, the largest first, are the answer."""

    @abstractmethod
    def target(self, cell: str, labels: Sequence[str], *, where: str) -> FloatArray:
        """Return what the label column says of one row, ``[outputs]``.

        Args:
            cell: of the label column.
            labels: of the model.
            where: file and row, for error messages.

        Raises:
            InputError: the cell does not fit the model.
        """

    @abstractmethod
    def measure(self, logits: FloatArray, targets: FloatArray) -> float:
        """Return the metric of ``logits [rows, outputs]`` for ``targets`` of the same shape."""


class OneLabel(Scoring):
    """One label out of several: softmax over the scores."""

    function = "softmax"
    is_probability = True
    has_choice = True
    metric = "accuracy"

    def apply(self, logits: npt.NDArray[Any]) -> FloatArray:
        """Return the softmax."""
        values = np.asarray(logits, np.float64)
        exponents = np.exp(values - values.max(-1, keepdims=True))
        return np.asarray(exponents / exponents.sum(-1, keepdims=True))

    def answers(self, results: FloatArray) -> int:
        """Return 1: the likeliest label."""
        return 1

    def target(self, cell: str, labels: Sequence[str], *, where: str) -> FloatArray:
        """Return 1 at the label that the cell names."""
        return _marked([cell], labels, where)

    def measure(self, logits: FloatArray, targets: FloatArray) -> float:
        """Return the accuracy."""
        return float((logits.argmax(-1) == targets.argmax(-1)).mean())


@dataclass(frozen=True)
class SeveralLabels(Scoring):
    """Any number of labels at once: a sigmoid of every score."""

    threshold: float = HALF
    """Probability from which a label applies."""

    function = "sigmoid"
    is_probability = True
    has_choice = True
    takes_lists = True
    metric = "micro F1"

    def apply(self, logits: npt.NDArray[Any]) -> FloatArray:
        """Return the sigmoids."""
        return _sigmoid(logits)

    def answers(self, results: FloatArray) -> int:
        """Return the number of labels whose probability is at least the threshold; it may be 0."""
        return int((results >= self.threshold).sum())

    def chosen(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return which labels apply, in the shape of ``logits``."""
        return np.asarray(self.apply(logits) >= self.threshold)

    def target(self, cell: str, labels: Sequence[str], *, where: str) -> FloatArray:
        """Return 1 at every label in the cell: one name, several with commas, semicolons or bars between, or a JSON list."""
        return _marked([cell] if cell in labels else split_cell(cell, labels), labels, where)

    def measure(self, logits: FloatArray, targets: FloatArray) -> float:
        """Return F1 over all labels of all rows."""
        chosen, right = self.chosen(logits), targets > 0
        total = int(chosen.sum() + right.sum())
        return 2.0 * int((chosen & right).sum()) / total if total else 1.0


class Numbers(Scoring):
    """A number for each output, as it is."""

    function: ClassVar[FunctionToApply] = "none"
    is_probability = False
    has_choice = False
    takes_lists = True
    metric = "Pearson correlation"

    def apply(self, logits: npt.NDArray[Any]) -> FloatArray:
        """Return the scores."""
        return np.asarray(logits, np.float64)

    def answers(self, results: FloatArray) -> int:
        """Return the number of outputs."""
        return len(results)

    def target(self, cell: str, labels: Sequence[str], *, where: str) -> FloatArray:
        """Return the number in the cell, or the numbers with commas or semicolons between them."""
        try:
            values = np.array([float(part) for part in split_cell(cell, ())])
        except ValueError:
            raise InputError(f"{where} has the label '{cell}', but the model gives numbers: write a number.") from None
        if len(values) != len(labels) or not np.isfinite(values).all():
            raise InputError(f"{where} has the label '{cell}', but the model gives {len(labels)} finite numbers.")
        return values

    def measure(self, logits: FloatArray, targets: FloatArray) -> float:
        """Return the correlation of results and targets, averaged over the outputs; 0 where either is constant."""
        return float(np.mean([_correlation(*pair) for pair in zip(self.apply(logits).T, targets.T, strict=True)]))


class OneScore(Numbers):
    """One score between 0 and 1, as rerankers give: a sigmoid."""

    function = "sigmoid"

    def apply(self, logits: npt.NDArray[Any]) -> FloatArray:
        """Return the sigmoid."""
        return _sigmoid(logits)


_KINDS: dict[str, Scoring] = {"softmax": OneLabel(), "sigmoid": SeveralLabels(), "none": Numbers()}
"""Function → the meaning of several scores."""

_ONE_OUTPUT: dict[str, Scoring] = {"softmax": OneScore(), "sigmoid": OneScore(), "none": Numbers()}
"""Function → the meaning of a single score; softmax over one is 1 whatever the score is."""

_FUNCTIONS: dict[str | None, FunctionToApply] = {"regression": "none", "multi_label_classification": "sigmoid"}
"""Problem type → function where it is not softmax."""


def scoring_of(problem: str | None, outputs: int, threshold: float | None = None) -> Scoring:
    """Return the meaning of ``outputs`` scores.

    Args:
        problem: a problem type, a function that was already derived from one, or None for a model that records none.
        outputs: number of scores for each row.
        threshold: probability from which a label applies, where several may; None is one half.
    """
    function = problem if problem in get_args(FunctionToApply) else _FUNCTIONS.get(problem, "softmax")
    found = (_ONE_OUTPUT if outputs == 1 else _KINDS)[str(function)]
    return SeveralLabels(threshold) if threshold is not None and isinstance(found, SeveralLabels) else found


def problem_type_in(config: Mapping[str, Any]) -> ProblemType | None:
    """Return the problem type in a model's ``config.json``; None if it has none.

    Raises:
        CheckpointError: it is not one that transformers knows.
    """
    value = config.get("problem_type")
    if value is not None and value not in get_args(ProblemType):
        raise CheckpointError(
            f"config.json has the problem_type '{value}': transformers knows {', '.join(get_args(ProblemType))}."
        )
    return None if value is None else cast(ProblemType, value)


def _sigmoid(logits: npt.NDArray[Any]) -> FloatArray:
    values = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(values))  # never overflows
    return np.where(values >= 0, 1.0, small) / (1.0 + small)


def _marked(names: Sequence[str], labels: Sequence[str], where: str) -> FloatArray:
    target = np.zeros(len(labels))
    for name in names:
        if name not in labels:
            raise InputError(f"{where} has the label '{name}', but the model's are {', '.join(labels)}.")
        target[list(labels).index(name)] = 1.0
    return target


def _correlation(first: FloatArray, second: FloatArray) -> float:
    deviations = first - first.mean(), second - second.mean()
    length = float(np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    return float((deviations[0] * deviations[1]).sum()) / length if length > 1e-300 else 0.0
