"""Measuring a metric on labeled data, with every model that is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError, some_of
from rmlora.image_vector import ImageVector
from rmlora.inputs import Arrays
from rmlora.outputs import Outputs, SentenceVector
from rmlora.scoring import Scoring, SeveralLabels
from rmlora.span_scores import SpanScores
from rmlora.token_labels import TokenLabels
from rmlora.training.class_report import label_figures, report_classes
from rmlora.training.data import Columns, load_split
from rmlora.training.label_values import number_labels, numbers_labels
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.bundles.report import Evaluation, EvaluationDetails, Tolerance
from rmlora_deploy.verification.evaluation_data import EvaluationData, Judgement, MeasuredModel
from rmlora_deploy.verification.neighbor_evaluation import NeighborEvaluation
from rmlora_deploy.verification.question_evaluation import QuestionEvaluation
from rmlora_deploy.verification.similarity_evaluation import SimilarityEvaluation
from rmlora_deploy.verification.tag_evaluation import TagEvaluation

__all__ = ["EvaluationData", "LabelEvaluation", "keeps_metric", "lost_metric", "measure", "read_evaluation"]

_BATCH = 32


@dataclass(frozen=True)
class LabelEvaluation(EvaluationData):
    """Inputs with the right labels, or numbers."""

    targets: npt.NDArray[np.float64]
    """What the label column says, ``[rows, outputs]``."""
    scoring: Scoring
    """What the model's scores mean, and how they are compared with ``targets``."""
    labels: tuple[str, ...]
    """Of the model, in the order of its scores."""

    @classmethod
    def read(cls, source: str, columns: Columns, model: MeasuredModel) -> LabelEvaluation:
        """Read data; arguments and errors as :func:`read_evaluation`."""
        task, labels = model.task, model.labels
        scoring = task.outputs.scoring(model.problem, labels, model.threshold)
        if scoring is None:
            raise ConfigError(f"--data measures a metric on labels, and {task.name} has none: leave it out.")
        data = load_split(task, source, columns, several=scoring.takes_lists, form=model.form)
        if scoring.function == "softmax":  # every row names one label, in any spelling that training accepts
            unknown = f"but the model's are {some_of(labels)}"
            numbered = numbers_labels(data.labels, labels)
            rows = number_labels(data.labels, labels, source=source, unknown=unknown, numbered=numbered)
            targets = np.eye(len(labels))[rows]
        else:
            cells = enumerate(data.labels, 1)
            targets = np.stack(
                [scoring.target(cell, labels, where=f"Row {number} of {source}") for number, cell in cells]
            )
        return cls(source, data.inputs, targets, scoring, tuple(labels))

    @property
    def metric(self) -> str:
        """That of the scoring."""
        return self.scoring.metric

    def judge(self, outputs: Sequence[npt.NDArray[Any]]) -> Judgement:
        """Return the metric of scores ``[outputs]`` for every row, and the figures of every label if there are labels."""
        scores = np.stack(outputs)
        return Judgement(self.scoring.measure(scores, self.targets), self._details(scores))

    def _details(self, scores: npt.NDArray[Any]) -> EvaluationDetails | None:
        if isinstance(self.scoring, SeveralLabels):
            figures = label_figures(self.labels, self.targets > 0, self.scoring.chosen(scores))
            return EvaluationDetails.model_validate({"per_class": figures})
        if not self.scoring.has_choice:
            return None
        return EvaluationDetails.model_validate(report_classes(scores, self.targets.argmax(-1), self.labels).to_dict())


_KINDS: dict[
    type[Outputs],
    type[LabelEvaluation | TagEvaluation | QuestionEvaluation | SimilarityEvaluation | NeighborEvaluation],
] = {
    TokenLabels: TagEvaluation,
    SpanScores: QuestionEvaluation,
    SentenceVector: SimilarityEvaluation,
    ImageVector: NeighborEvaluation,
}
"""Kind of a task's outputs → class for its data; all other kinds have labels for whole rows."""


def read_evaluation(source: str, columns: Columns, model: MeasuredModel) -> EvaluationData:
    """Read labeled data for a model.

    Args:
        source: csv, tsv, jsonl or parquet file, folder of images, or hub data set.
        columns: names of its columns.
        model: what is measured.

    Raises:
        ConfigError: the task has no labels.
        InputError: the data cannot be read, or has a label that does not fit the model.
    """
    return _KINDS.get(type(model.task.outputs), LabelEvaluation).read(source, columns, model)


def measure(
    data: EvaluationData,
    preprocessor: Preprocessor,
    *,
    onnx: Callable[[Arrays], np.ndarray],
    pytorch: Callable[[Arrays], np.ndarray] | None,
) -> Evaluation:
    """Return the metric of every model.

    Args:
        data: labeled examples.
        preprocessor: of the bundle.
        onnx: from a batch to the graph's scores ``[rows, labels]``.
        pytorch: the same of PyTorch's model; None if there is none to compare with.
    """
    models = {"onnx": onnx} if pytorch is None else {"onnx": onnx, "pytorch": pytorch}
    kind = preprocessor.task.outputs
    outputs: dict[str, list[Any]] = {name: [] for name in models}
    for start in range(0, len(data.inputs), _BATCH):
        rows, counts = _rows(data, preprocessor, start)
        batches = [rows[first : first + _BATCH] for first in range(0, len(rows), _BATCH)]
        collated = [preprocessor.collate(batch) for batch in batches]
        for name, model in models.items():
            found = [
                kind.of_row(output, row)
                for batch, arrays in zip(batches, collated, strict=True)
                for output, row in zip(np.asarray(model(arrays), np.float64), batch, strict=True)
            ]
            ends = np.cumsum(counts)
            outputs[name] += [kind.of_parts(found[end - count : end]) for count, end in zip(counts, ends, strict=True)]
    judged = {name: data.judge(found) for name, found in outputs.items()}
    optional: dict[str, Any] = {name: judgement.metric for name, judgement in judged.items()}
    if judged["onnx"].details is not None:
        optional["details"] = judged["onnx"].details
    return Evaluation(data=Path(data.source).name, examples=data.examples, metric=data.metric, **optional)


def _rows(data: EvaluationData, preprocessor: Preprocessor, start: int) -> tuple[list[Arrays], list[int]]:
    """Return the rows of some inputs, and how many each of them has."""
    inputs = data.inputs[start : start + _BATCH]
    try:
        parts = [preprocessor.parts(value) for value in inputs]
        return preprocessor.rows([part for several in parts for part in several]), [len(several) for several in parts]
    except InputError as error:
        raise InputError(f"Among rows {start + 1} to {start + len(inputs)} of {data.source}: {error}") from None


def keeps_metric(scores: Evaluation, tolerance: Tolerance) -> bool:
    """Return False if the graph lost more of PyTorch's metric than is allowed."""
    return scores.pytorch is None or tolerance.accepts_metric(scores.pytorch, scores.onnx, scores.examples)


def lost_metric(scores: Evaluation, precision: str, tolerance: Tolerance) -> str:
    """Return the error sentence for a graph of ``precision`` that lost more of the metric than is allowed."""
    return (
        f"The {precision} graph has {scores.metric} {scores.onnx:.4f} on {scores.data} where PyTorch has "
        f"{scores.pytorch:.4f} (a loss of {tolerance.metric_loss:.2g} is allowed): choose a higher --precision."
    )
