"""The metric itself on labeled data, for every model that is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.errors import ConfigError, InputError
from rmlora.tasks import get_task
from rmlora.training.data import Columns, load_split
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime.outputs import Arrays

__all__ = ["EvaluationData", "lost_metric", "measure", "read_evaluation"]

_BATCH = 32


@dataclass(frozen=True)
class EvaluationData:
    """Labeled examples to measure the metric on; labels are indices into the model's."""

    source: str
    inputs: list[Any]
    labels: list[int]


def read_evaluation(source: str, columns: Columns, *, task: str, labels: Sequence[str]) -> EvaluationData:
    """Read labeled data for a model of ``task`` with ``labels``.

    Raises:
        ConfigError: the task has no labels.
        InputError: it cannot be read, or has a label the model does not know.
    """
    if get_task(task).answer == "vector":
        raise ConfigError(f"--data measures a metric on labels, and {task} has none: leave it out.")
    data = load_split(get_task(task), source, columns)
    index = {label: number for number, label in enumerate(labels)}
    unknown = sorted(set(data.labels) - set(index))
    if unknown:
        raise InputError(f"{source} has the label '{unknown[0]}', but the model's are {', '.join(index)}.")
    return EvaluationData(source, data.inputs, [index[label] for label in data.labels])


def measure(
    data: EvaluationData, preprocessor: Preprocessor, models: Mapping[str, Callable[[Arrays], np.ndarray]]
) -> dict[str, Any]:
    """Return the accuracy of every model in ``models`` (name → logits of a batch), batch by batch.

    Returns:
        ``{"data", "examples", "metric", <name>: accuracy, …}``.
    """
    correct = dict.fromkeys(models, 0)
    for start in range(0, len(data.labels), _BATCH):
        batch = preprocessor(data.inputs[start : start + _BATCH])
        labels = np.array(data.labels[start : start + _BATCH])
        for name, logits in models.items():
            correct[name] += int((logits(batch).argmax(-1) == labels).sum())
    scores = {name: count / len(data.labels) for name, count in correct.items()}
    return {"data": Path(data.source).name, "examples": len(data.labels), "metric": "accuracy", **scores}


def lost_metric(scores: Mapping[str, Any], precision: str, tolerance: Mapping[str, float]) -> str:
    """Say that a graph of ``precision`` lost more of the metric than is allowed."""
    return (
        f"The {precision} graph has {scores['metric']} {scores['onnx']:.4f} on {scores['data']} where PyTorch has "
        f"{scores['pytorch']:.4f} (a loss of {tolerance['metric_loss']:.2g} is allowed): choose a higher --precision."
    )
