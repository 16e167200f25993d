"""One label out of several: cross entropy, accuracy and F1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from rmlora.errors import some_of
from rmlora.training.class_report import distrust, report_classes
from rmlora.training.label_column import LabelColumn
from rmlora.training.label_values import label_names, number_labels, order_labels
from rmlora.training.problem import FloatArray, Problem
from rmlora.training.split_evaluation import Evaluation

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.training.settings import TrainSettings

__all__ = ["OneLabelProblem"]


class OneLabelProblem(Problem):
    """Targets are indices of labels."""

    name = "single_label_classification"
    best_metrics = ("accuracy", "macro_f1", "balanced_accuracy", "mcc", "loss")

    def order(self, column: LabelColumn, given: Sequence[str] | None) -> tuple[str, ...]:
        """Return the labels given, declared by the dataset, or found."""
        return order_labels(_names(column), column.declared, given, source=column.source)

    def encode(self, column: LabelColumn, labels: Sequence[str], *, given: bool) -> list[Any]:
        """Return the index of every row's label."""
        unknown = f"which {'--labels' if given else 'the training data'} lacks (it has {some_of(labels)})"
        return number_labels(_names(column), labels, source=column.source, unknown=unknown, numbered=given)

    def strata(self, targets: Sequence[Any]) -> list[int]:
        """Return the labels: each keeps its share."""
        return list(targets)

    def present(self, targets: Sequence[Any], labels: Sequence[str]) -> set[int]:
        """Return the targets."""
        return set(targets)

    def loss(
        self, settings: TrainSettings, labels: Sequence[str], targets: Sequence[Any]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return torch's cross entropy."""
        from torch.nn.functional import cross_entropy

        return lambda logits, numbers: cross_entropy(logits, numbers, reduction="sum")

    def metrics(self, logits: FloatArray, targets: npt.NDArray[Any], settings: TrainSettings) -> dict[str, float]:
        """Return the accuracy and macro F1, and the metric that chooses the checkpoint if it is another one."""
        from sklearn.metrics import balanced_accuracy_score, matthews_corrcoef

        report = report_classes(logits, targets, [str(index) for index in range(logits.shape[-1])])
        measured = {"accuracy": report.accuracy, "macro_f1": report.macro_f1}
        others: dict[str, Callable[[Any, Any], float]] = {
            "balanced_accuracy": balanced_accuracy_score,
            "mcc": matthews_corrcoef,
        }
        if function := others.get(str(settings.best_metric)):
            measured[str(settings.best_metric)] = float(function(targets, logits.argmax(-1)))
        return measured

    def evaluate(
        self, logits: FloatArray, targets: npt.NDArray[Any], labels: Sequence[str], split: str, settings: TrainSettings
    ) -> Evaluation:
        """Return the metrics and the mean confidence, the figures of every label and the confusion matrix."""
        report = report_classes(logits, targets, labels)
        scores = {**self.metrics(logits, targets, settings), "confidence": report.confidence}
        return Evaluation(scores, report.to_dict(), tuple(distrust(report, split)))


def _names(column: LabelColumn) -> list[str]:
    """Return the label of every row; a list is refused, and whole numbers lose their decimal point."""
    found = label_names(column.cells, None, source=column.source, numbers=column.numbers, unit=column.unit)
    return [name for name in found if name is not None]
