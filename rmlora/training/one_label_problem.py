"""One label out of several: cross entropy, accuracy and F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, some_of
from rmlora.training.class_report import ClassReport, distrust, report_classes
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
    own_settings = frozenset({"class_weights", "label_smoothing"})
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
        """Return torch's cross entropy, weighted and smoothed as the settings say.

        transformers' label smoothing is the same, but it divides by the examples of a forward pass.
        """
        import torch
        from torch.nn.functional import cross_entropy

        found = _weights(settings.class_weights, labels, targets)
        weights = None if found is None else torch.tensor(found, dtype=torch.float32)
        smoothing = settings.label_smoothing

        def loss(logits: Tensor, numbers: Tensor) -> Tensor:
            here = None if weights is None else weights.to(logits.device)
            return cross_entropy(logits, numbers, weight=here, label_smoothing=smoothing, reduction="sum")

        return loss

    def metrics(self, logits: FloatArray, targets: npt.NDArray[Any], settings: TrainSettings) -> dict[str, float]:
        """Return the accuracy and macro F1, and the metric that chooses the checkpoint if it is another one."""
        report = report_classes(logits, targets, [str(index) for index in range(logits.shape[-1])])
        return _scores(report, logits, targets, settings)

    def evaluate(
        self, logits: FloatArray, targets: npt.NDArray[Any], labels: Sequence[str], split: str, settings: TrainSettings
    ) -> Evaluation:
        """Return the metrics and the mean confidence, the figures of every label and the confusion matrix."""
        report = report_classes(logits, targets, labels)
        scores = {**_scores(report, logits, targets, settings), "confidence": report.confidence}
        return Evaluation(scores, report.to_dict(), tuple(distrust(report, split)))


def _scores(
    report: ClassReport, logits: FloatArray, targets: npt.NDArray[Any], settings: TrainSettings
) -> dict[str, float]:
    from sklearn.metrics import balanced_accuracy_score, matthews_corrcoef

    measured = {"accuracy": report.accuracy, "macro_f1": report.macro_f1}
    others: dict[str, Callable[[Any, Any], float]] = {
        "balanced_accuracy": balanced_accuracy_score,
        "mcc": matthews_corrcoef,
    }
    if function := others.get(str(settings.best_metric)):
        measured[str(settings.best_metric)] = float(function(targets, logits.argmax(-1)))
    return measured


def _weights(
    chosen: Literal["balanced"] | Mapping[str, float] | None, labels: Sequence[str], targets: Sequence[int]
) -> list[float] | None:
    """Return the weight of every label, 1 on average over the training examples; None if all count alike."""
    from sklearn.utils.class_weight import compute_class_weight

    if chosen is None:
        return None
    if isinstance(chosen, str):
        present = np.unique(targets)
        found = np.ones(len(labels))
        found[present] = compute_class_weight("balanced", classes=present, y=np.asarray(targets))
    else:
        if unknown := [name for name in chosen if name not in labels]:
            raise ConfigError(f"--class-weights names the label '{unknown[0]}', but the data's are {some_of(labels)}.")
        found = np.array([float(chosen.get(label, 1.0)) for label in labels])
    weights: list[float] = (found / found[np.asarray(targets)].mean()).tolist()
    return weights


def _names(column: LabelColumn) -> list[str]:
    """Return the label of every row; a list is refused, and whole numbers lose their decimal point."""
    found = label_names(column.cells, None, source=column.source, numbers=column.numbers, unit=column.unit)
    return [name for name in found if name is not None]
