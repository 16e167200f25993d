"""Measuring a metric on labeled data, with every model that is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.errors import ConfigError, some_of
from rmlora.inputs import Arrays
from rmlora.tasks import Task
from rmlora.training.data import Columns, load_split
from rmlora.training.label_values import number_labels
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.bundles.report import Evaluation, Tolerance

__all__ = ["EvaluationData", "keeps_metric", "lost_metric", "measure", "read_evaluation"]

_BATCH = 32


@dataclass(frozen=True)
class EvaluationData:
    """Labeled examples to measure the metric on; ``labels`` are indices into the model's labels."""

    source: str
    inputs: list[Any]
    labels: list[int]


def read_evaluation(source: str, columns: Columns, *, task: Task, labels: Sequence[str]) -> EvaluationData:
    """Read labeled data for a model.

    Args:
        source: csv, tsv, jsonl or parquet file, folder of images, or hub data set.
        columns: names of its columns.
        task: of the model.
        labels: of the model, in the order of its scores.

    Raises:
        ConfigError: the task has no labels.
        InputError: the data cannot be read, or has a label that the model does not know.
    """
    if not task.outputs.has_labels:
        raise ConfigError(f"--data measures a metric on labels, and {task.name} has none: leave it out.")
    data = load_split(task, source, columns)
    indices = number_labels(data.labels, labels, source=source, unknown=f"but the model's are {some_of(labels)}")
    return EvaluationData(source, data.inputs, indices)


def measure(
    data: EvaluationData,
    preprocessor: Preprocessor,
    *,
    onnx: Callable[[Arrays], np.ndarray],
    pytorch: Callable[[Arrays], np.ndarray] | None,
) -> Evaluation:
    """Return the accuracy of every model.

    Args:
        data: labeled examples.
        preprocessor: of the bundle.
        onnx: from a batch to the graph's scores ``[rows, labels]``.
        pytorch: the same of PyTorch's model; None if there is none to compare with.
    """
    models = {"onnx": onnx} if pytorch is None else {"onnx": onnx, "pytorch": pytorch}
    correct = dict.fromkeys(models, 0)
    for start in range(0, len(data.labels), _BATCH):
        batch = preprocessor(data.inputs[start : start + _BATCH])
        labels = np.array(data.labels[start : start + _BATCH])
        for name, scores in models.items():
            correct[name] += int((scores(batch).argmax(-1) == labels).sum())
    accuracy = {name: count / len(data.labels) for name, count in correct.items()}
    return Evaluation(data=Path(data.source).name, examples=len(data.labels), metric="accuracy", **accuracy)


def keeps_metric(scores: Evaluation, tolerance: Tolerance) -> bool:
    """Return False if the graph lost more of PyTorch's metric than is allowed."""
    return scores.pytorch is None or tolerance.accepts_metric(scores.pytorch, scores.onnx, scores.examples)


def lost_metric(scores: Evaluation, precision: str, tolerance: Tolerance) -> str:
    """Return the error sentence for a graph of ``precision`` that lost more of the metric than is allowed."""
    return (
        f"The {precision} graph has {scores.metric} {scores.onnx:.4f} on {scores.data} where PyTorch has "
        f"{scores.pytorch:.4f} (a loss of {tolerance.metric_loss:.2g} is allowed): choose a higher --precision."
    )
