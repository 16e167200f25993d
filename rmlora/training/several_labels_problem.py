"""Any number of labels per row: binary cross entropy of every label, and F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError, some_of
from rmlora.label_lists import read_list, split_cell
from rmlora.scoring import HALF, SeveralLabels
from rmlora.training.class_report import label_figures
from rmlora.training.label_column import LabelColumn
from rmlora.training.label_values import number_labels, sort_labels
from rmlora.training.problem import FloatArray, Problem
from rmlora.training.split_evaluation import Evaluation
from rmlora.wording import counted

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.training.settings import TrainSettings

__all__ = ["SeveralLabelsProblem"]


_CLEARLY = 0.02
"""Difference of F1 that is worth a sentence."""


@dataclass(frozen=True)
class SeveralLabelsProblem(Problem):
    """Targets are a 1 or 0 for every label."""

    threshold: float | None = None
    """Probability from which a label applies, if the validation data decided it."""

    name = "multi_label_classification"
    own_settings = frozenset({"threshold"})
    best_metrics = ("micro_f1", "macro_f1", "samples_f1", "subset_accuracy", "loss")

    def order(self, column: LabelColumn, given: Sequence[str] | None) -> tuple[str, ...]:
        """Return the labels given, declared by the dataset, or found."""
        rows = _names(column)
        found = {name for names in rows for name in names}
        if given is None and len(found) < 2:
            raise InputError(
                f"{column.source} has {'no label' if not found else f'only one label ({next(iter(found))!r})'} in "
                f"'{column.name}': several labels per row need at least two different ones; check --label-column."
            )
        return tuple(given or column.declared or sort_labels(found))

    def encode(self, column: LabelColumn, labels: Sequence[str], *, given: bool) -> list[Any]:
        """Return for every row ``[labels]``: 1.0 at its labels."""
        owner = "--labels" if given else "the training data"
        targets = np.zeros((len(column.cells), len(labels)))
        for row, names in enumerate(_names(column, labels)):
            where, unknown = column.where(row), f"which {owner} lacks (it has {some_of(labels)})"
            targets[row, number_labels(names, labels, source=where, unknown=unknown, numbered=given)] = 1.0
        listed: list[Any] = targets.tolist()
        return listed

    def present(self, targets: Sequence[Any], labels: Sequence[str]) -> set[int]:
        """Return the columns that have a 1."""
        return set(np.flatnonzero(np.asarray(targets).any(0)).tolist())

    def loss(
        self, settings: TrainSettings, labels: Sequence[str], targets: Sequence[Any]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return torch's binary cross entropy; the mean is over rows and labels, as in transformers."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return lambda logits, wanted: binary_cross_entropy_with_logits(logits, wanted.float(), reduction="sum")

    def metrics(self, logits: FloatArray, targets: npt.NDArray[Any], settings: TrainSettings) -> dict[str, float]:
        """Return F1 over all labels of all rows, its means over labels and over rows, and the share of rows without an error.

        While the best threshold is not decided, it is the best for these rows: the checkpoint is chosen as it will be used.
        """
        from sklearn.metrics import f1_score

        if self.threshold is None and settings.threshold == "best":
            return self.decided(logits, targets, settings).metrics(logits, targets, settings)
        right, chosen = targets > 0, self._scoring(settings).chosen(logits)
        occurring = np.flatnonzero(right.any(0))
        macro = f1_score(right, chosen, labels=occurring, average="macro", zero_division=0) if len(occurring) else 1.0
        return {
            # where nothing is right and nothing chosen, nothing is wrong
            "micro_f1": float(f1_score(right, chosen, average="micro", zero_division=1)),
            "macro_f1": float(macro),
            "samples_f1": float(f1_score(right, chosen, average="samples", zero_division=1)),
            "subset_accuracy": float((right == chosen).all(-1).mean()),
        }

    def evaluate(
        self, logits: FloatArray, targets: npt.NDArray[Any], labels: Sequence[str], split: str, settings: TrainSettings
    ) -> Evaluation:
        """Return the metrics and the figures of every label."""
        scoring, right = self._scoring(settings), targets > 0
        chosen = scoring.chosen(logits)
        per_class = label_figures(labels, right, chosen)
        thresholds = _micro_f1_by_threshold(logits, right)
        warnings = _distrust(right, chosen, labels, split, scoring.threshold)
        if split == "validation" and settings.threshold == HALF:
            warnings += _better_threshold(thresholds)
        details = {"per_class": per_class, "micro_f1_by_threshold": thresholds}
        return Evaluation(self.metrics(logits, targets, settings), details, tuple(warnings))

    def decided(self, logits: FloatArray, targets: npt.NDArray[Any], settings: TrainSettings) -> SeveralLabelsProblem:
        """Return the problem with the best threshold for the validation data, if the settings ask for it."""
        if settings.threshold != "best":
            return self
        figures = _micro_f1_by_threshold(logits, targets > 0)
        # of several that are as good, the one nearest to one half
        best = max(figures, key=lambda threshold: (figures[threshold], -abs(float(threshold) - HALF)))
        return replace(self, threshold=float(best))

    def metadata(self, settings: TrainSettings, targets: Sequence[Any]) -> dict[str, Any]:
        """Return the probability from which a label applies."""
        return {"threshold": self._scoring(settings).threshold}

    def _scoring(self, settings: TrainSettings) -> SeveralLabels:
        """Return how labels are chosen; while ``best`` is not decided, from one half."""
        return SeveralLabels(self.threshold or (HALF if settings.threshold == "best" else settings.threshold))


def _names(column: LabelColumn, labels: Sequence[str] = ()) -> list[list[str]]:
    """Return the labels of every row; a cell that is one of ``labels`` is not divided."""
    rows = [[cell] if cell in labels else split_cell(cell) for cell in column.cells]
    for row, cell in enumerate(column.cells):
        if cell.lstrip().startswith("{") or None in (read_list(cell) or ()):
            raise InputError(
                f'{column.where(row)} has the labels {cell[:60]}: write a list of names or numbers, such as ["a", "b"].'
            )
    lists = [names for cell, names in zip(column.cells, rows, strict=True) if read_list(cell) is not None]
    if lists and _are_marks(lists):
        raise ConfigError(
            f"The lists in '{column.name}' of {column.source} mark every label with 0 or 1: write the names or numbers of the "
            "labels that a row has, such as [0, 2]."
        )
    return rows


def _are_marks(lists: Sequence[Sequence[str]]) -> bool:
    """Return True for rows like ``[0, 1, 0]``, which cannot be numbers of labels: one occurs twice."""
    same_length = len({len(names) for names in lists}) == 1
    only_marks = all(name in ("0", "1", "False", "True", "0.0", "1.0") for names in lists for name in names)
    return same_length and only_marks and any(len(set(names)) < len(names) for names in lists)


def _micro_f1_by_threshold(logits: FloatArray, right: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return micro F1 if a label were chosen at a probability of at least 0.1, 0.2, …, 0.9."""
    from sklearn.metrics import f1_score

    probabilities = SeveralLabels().apply(logits)
    return {
        f"{tenths / 10}": float(f1_score(right, probabilities >= tenths / 10, average="micro", zero_division=1))
        for tenths in range(1, 10)
    }


def _better_threshold(thresholds: Mapping[str, float]) -> list[str]:
    """Return a sentence if another threshold than one half is clearly better for the validation data."""
    best = max(thresholds, key=thresholds.__getitem__)
    if thresholds[best] < thresholds["0.5"] + _CLEARLY:
        return []
    return [
        f"Labels chosen at a probability of {best} instead of 0.5 would reach a micro F1 of {thresholds[best]:.4f} instead of "
        f"{thresholds['0.5']:.4f} on the validation data: train for more epochs or with a higher --learning-rate, or record the "
        "best one with --threshold best."
    ]


def _distrust(
    right: npt.NDArray[np.bool_], chosen: npt.NDArray[np.bool_], labels: Sequence[str], split: str, threshold: float
) -> list[str]:
    """Return a sentence for everything that speaks against trusting the adapter."""
    if not chosen.any():
        return [
            f"No label of any row of the {split} data has a probability of at least {threshold:g}: the adapter has learned little or "
            "nothing. Train for more epochs or with a higher --learning-rate."
        ]
    if chosen.all() and not right.all():
        return [
            f"Every label of every row of the {split} data has a probability of at least {threshold:g}: the adapter has learned little "
            "or nothing. Train for more epochs or with a higher --learning-rate."
        ]
    never = [label for label, r, c in zip(labels, right.T, chosen.T, strict=True) if r.any() and not c.any()]
    if not never:
        return []
    if len(never) == 1:
        return [f"The label '{never[0]}' is never predicted for the {split} data."]
    return [f"{counted(len(never), 'label')} never predicted for the {split} data: {some_of(never)}."]
