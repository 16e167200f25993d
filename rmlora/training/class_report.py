"""What a classifier gets right, label by label, and whether that can be trusted (numpy)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import some_of
from rmlora.wording import counted

__all__ = ["ClassReport", "distrust", "label_figures", "report_classes"]

_CONFIDENCE = 0.15
"""A mean confidence this close to chance, as a share of the way from chance to 1, is worth a warning."""


@dataclass(frozen=True)
class ClassReport:
    """The predictions for one split, counted."""

    labels: tuple[str, ...]
    """Names in the order of the scores."""
    confusion: npt.NDArray[np.int64]
    """``[labels, labels]``: rows of each true label (first axis) by predicted label."""
    confidence: float
    """Probability of the predicted label, mean over all rows."""

    @property
    def examples(self) -> int:
        """Number of rows."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of rows with the right label."""
        return float(np.trace(self.confusion) / max(self.examples, 1))

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """F1 of every label, ``[labels]``; 0 for a label that neither occurs nor is predicted."""
        return np.array([figures["f1"] for figures in self.per_class.values()])

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """Label → examples, precision, recall and F1."""
        return _figures(self.labels, self.confusion.sum(1), self.confusion.sum(0), np.diagonal(self.confusion))

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the labels that occur."""
        return float(self.f1[self.confusion.sum(1) > 0].mean())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: precision, recall and F1 of every label, and the counts of the confusion matrix.

        ``confusion`` maps each true label to the labels predicted for its rows; counts of zero are left out.
        """
        confusion = {
            label: {self.labels[j]: int(self.confusion[i, j]) for j in np.flatnonzero(self.confusion[i])}
            for i, label in enumerate(self.labels)
            if self.confusion[i].any()
        }
        return {"per_class": self.per_class, "confusion": confusion}


def label_figures(
    labels: Sequence[str], right: npt.NDArray[np.bool_], chosen: npt.NDArray[np.bool_]
) -> dict[str, dict[str, float]]:
    """Return label → examples, precision, recall and F1, where rows may have several labels.

    Args:
        labels: names in the order of the columns.
        right: ``[rows, labels]``: whether the row has the label.
        chosen: whether the model says so.
    """
    return _figures(labels, right.sum(0), chosen.sum(0), (right & chosen).sum(0))


def _figures(
    labels: Sequence[str], true: npt.NDArray[Any], predicted: npt.NDArray[Any], right: npt.NDArray[Any]
) -> dict[str, dict[str, float]]:
    """Return the figures from counts ``[labels]``; each is 0 where its divisor is."""
    return {
        label: {
            "examples": int(true[i]),
            "precision": float(right[i] / max(predicted[i], 1)),
            "recall": float(right[i] / max(true[i], 1)),
            "f1": float(2 * right[i] / max(true[i] + predicted[i], 1)),
        }
        for i, label in enumerate(labels)
    }


def report_classes(logits: npt.ArrayLike, truth: npt.ArrayLike, labels: Sequence[str]) -> ClassReport:
    """Count a model's predictions.

    Args:
        logits: scores ``[rows, labels]``.
        truth: index of the right label of every row, ``[rows]``.
        labels: names in the order of the scores.
    """
    scores, true = np.asarray(logits, np.float64), np.asarray(truth, np.int64)
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (true, scores.argmax(-1)), 1)
    return ClassReport(tuple(labels), confusion, float((1 / shifted.sum(-1)).mean()))


def distrust(report: ClassReport, split: str) -> list[str]:
    """Return a sentence for everything that speaks against trusting the adapter; empty if nothing does.

    Args:
        report: of the predictions.
        split: name of the data.
    """
    warnings = []
    true, predicted = report.confusion.sum(1), report.confusion.sum(0)
    common = max(range(len(true)), key=lambda label: (true[label], predicted[label]))  # of a tie, what it answers most
    share = float(true[common] / report.examples)
    margin = math.sqrt(share * (1 - share) / report.examples)
    if (true > 0).sum() > 1 and report.accuracy <= share + margin:
        relation = "below" if report.accuracy < share - margin else "about"
        warnings.append(
            f"The {split} accuracy, {report.accuracy:.4f}, is {relation} what always answering '{report.labels[common]}' "
            f"reaches ({share:.4f}): the adapter has learned little or nothing. Train for more epochs, or check data and "
            "--learning-rate."
        )
    if missed := [label for label, t, p in zip(report.labels, true, predicted, strict=True) if t and not p]:
        warnings.append(
            f"{counted(len(missed), 'label')} never predicted for the {split} data: {some_of(missed)}."
            if len(missed) > 1
            else f"The label '{missed[0]}' is never predicted for the {split} data."
        )
    chance = 1 / len(report.labels)
    if report.confidence < chance + _CONFIDENCE * (1 - chance):
        warnings.append(
            f"The adapter is unsure of its answers: the label it predicts for the {split} data has a probability of "
            f"{report.confidence:.2f} on average, and chance is {chance:.2f}. Train for more epochs or with a higher "
            "--learning-rate."
        )
    return warnings
