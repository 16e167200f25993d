"""Texts with tagged words, to measure how well a model finds their entities (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import require
from rmlora.training.data import Columns
from rmlora.training.tag_report import report_tags, tag_metric
from rmlora.training.tagged_data import read_tagged
from rmlora_deploy.bundles.report import EvaluationDetails
from rmlora_deploy.verification.evaluation_data import EvaluationData, Judgement, MeasuredModel

__all__ = ["TagEvaluation"]


@dataclass(frozen=True)
class TagEvaluation(EvaluationData):
    """Texts with the right tag of every word."""

    tags: list[tuple[str, ...]]
    """Of every text's words."""
    labels: tuple[str, ...]
    """Tags of the model, in the order of its scores."""

    @classmethod
    def read(cls, source: str, columns: Columns, model: MeasuredModel) -> TagEvaluation:
        """Read data; arguments and errors as :func:`rmlora_deploy.verification.evaluation.read_evaluation`."""
        require("seqeval", "train")
        data = read_tagged(source, columns, tags=model.labels)
        return cls(
            source, [text.sentence for text in data.texts], [text.tags for text in data.texts], tuple(model.labels)
        )

    @property
    def metric(self) -> str:
        """F1 of entities or, where tags have no prefixes, of words."""
        return tag_metric(self.labels)

    def judge(self, outputs: Sequence[npt.NDArray[Any]]) -> Judgement:
        """Return F1 and the figures of every label, over the words that were read.

        Args:
            outputs: scores ``[words, labels]`` of every text.
        """
        true: list[list[str]] = []
        predicted: list[list[str]] = []
        for scores, tags in zip(outputs, self.tags, strict=True):
            read = [word for word in range(min(len(scores), len(tags))) if not np.isnan(scores[word]).any()]
            true.append([tags[word] for word in read])
            predicted.append([self.labels[int(scores[word].argmax())] for word in read])
        report = report_tags(true, predicted, self.labels)
        return Judgement(report.f1, EvaluationDetails.model_validate({"per_class": report.per_class}))
