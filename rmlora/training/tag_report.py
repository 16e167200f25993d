"""How well tags of words are predicted: precision, recall and F1 of entities, by seqeval (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmlora.entities import OUTSIDE, TagScheme
from rmlora.errors import require, some_of
from rmlora.wording import counted

__all__ = ["TagReport", "distrust_tags", "report_tags", "tag_metric"]

_AS_SEQEVAL = str.maketrans("LU", "ES")
"""Prefixes of BILOU → those of IOBES that mean the same, which seqeval knows by default."""


@dataclass(frozen=True)
class TagReport:
    """The figures of one split: of entities or, where tags have no prefixes, of single words that are not outside."""

    precision: float
    recall: float
    f1: float
    """Micro-averaged: over all entities, whatever their label."""
    accuracy: float
    """Share of words with the right tag."""
    per_class: dict[str, dict[str, float]]
    """Label → examples, precision, recall and f1."""
    of_entities: bool
    """False if tags have no prefixes."""
    found: dict[str, int]
    """Label → entities, or words, that were predicted."""


def tag_metric(tags: Sequence[str]) -> str:
    """Return the name of the F1 that :func:`report_tags` measures for a model with these tags."""
    return "entity F1" if TagScheme.of(tags).prefixed else "word F1"


def report_tags(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], tags: Sequence[str]) -> TagReport:
    """Compare tags, word by word and entity by entity.

    Args:
        true: tags of the words of each text.
        predicted: as many of each.
        tags: of the model, which say whether there are prefixes.

    Raises:
        DependencyError: seqeval is not installed.
    """
    require("seqeval", "train")
    scheme = TagScheme.of(tags)
    same = [a == b for rows in zip(true, predicted, strict=True) for a, b in zip(*rows, strict=True)]
    accuracy = float(np.mean(same)) if same else 0.0
    labels = scheme.labels(tags)
    figures, average = (_of_entities if scheme.prefixed else _of_words)(true, predicted, labels)
    count = dict.fromkeys(labels, 0)
    for row in predicted:
        marked = [entity.label for entity in scheme.entities(row)] if scheme.prefixed else row
        for label in marked:
            if label in count:
                count[label] += 1
    return TagReport(*average, accuracy, figures, scheme.prefixed, count)


def _of_entities(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]
) -> tuple[dict[str, dict[str, float]], tuple[float, float, float]]:
    from seqeval.metrics import classification_report

    rows = [[_known(tag) for tag in row] for row in true], [[_known(tag) for tag in row] for row in predicted]
    if all(tag == OUTSIDE for row in rows[0] for tag in row):  # seqeval fails where there is no entity
        empty = all(tag == OUTSIDE for row in rows[1] for tag in row)
        return {label: _figures(0, 0.0, 0.0, 0.0) for label in labels}, (float(empty),) * 3
    report: dict[str, Any] = classification_report(*rows, output_dict=True, zero_division=0)

    def of(name: str) -> dict[str, float]:
        row = report.get(name, {})
        return _figures(
            *(row.get(key, 0) for key in ("support", "precision", "recall", "f1-score"))
        )  # a label without true or predicted entities is not in the report

    average = of("micro avg")
    return {label: of(label) for label in labels}, (average["precision"], average["recall"], average["f1"])


def _of_words(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]
) -> tuple[dict[str, dict[str, float]], tuple[float, float, float]]:
    from sklearn.metrics import precision_recall_fscore_support

    flat = [tag for row in true for tag in row], [tag for row in predicted for tag in row]
    options: dict[str, Any] = {"labels": list(labels), "zero_division": 0}
    rows = zip(labels, *precision_recall_fscore_support(*flat, **options), strict=True)
    precision, recall, f1, _ = precision_recall_fscore_support(*flat, average="micro", **options)
    figures = {label: _figures(support, *values) for label, *values, support in rows}
    return figures, (float(precision), float(recall), float(f1))


def _known(tag: str) -> str:
    """Return a tag with seqeval's prefix for it."""
    return tag[:1].translate(_AS_SEQEVAL) + tag[1:] if tag != OUTSIDE else tag


def _figures(examples: Any, precision: Any, recall: Any, f1: Any) -> dict[str, float]:
    return {"examples": int(examples), "precision": float(precision), "recall": float(recall), "f1": float(f1)}


def distrust_tags(report: TagReport, split: str) -> list[str]:
    """Return a sentence for everything that speaks against trusting the adapter; empty if nothing does."""
    missed = [label for label, row in report.per_class.items() if row["examples"] and not report.found[label]]
    there = [label for label, row in report.per_class.items() if row["examples"]]
    if missed and len(missed) == len(there):
        return [
            f"No entity is predicted for the {split} data: the adapter has learned nothing. Train for more epochs, or check data "
            "and --learning-rate."
        ]
    if missed:
        named = f"label '{missed[0]}' is" if len(missed) == 1 else f"{counted(len(missed), 'label')} are"
        return [
            f"The {named} never predicted for the {split} data{'' if len(missed) == 1 else f': {some_of(missed)}'}."
        ]
    return []
