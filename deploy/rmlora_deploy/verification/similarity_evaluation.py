"""Pairs of texts with scores, to measure how well a model's vectors order them by similarity (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError, require
from rmlora.training.data import Columns
from rmlora.training.embedding_columns import EmbeddingColumns
from rmlora.training.embedding_data import read_embedding_data
from rmlora.training.embedding_problem import EMBEDDING_PROBLEMS
from rmlora_deploy.verification.evaluation_data import EvaluationData, Judgement, MeasuredModel

__all__ = ["SimilarityEvaluation"]


@dataclass(frozen=True)
class SimilarityEvaluation(EvaluationData):
    """Scored pairs. The inputs are all first texts, then all second ones."""

    scores: tuple[float, ...]
    """Of every pair; more for more similar texts."""

    @classmethod
    def read(cls, source: str, columns: Columns, model: MeasuredModel) -> SimilarityEvaluation:
        """Read data; arguments and errors as :func:`rmlora_deploy.verification.evaluation.read_evaluation`."""
        require("scipy", "export")
        data = read_embedding_data(
            source, EmbeddingColumns(first=columns.inputs, second=columns.pair, score=columns.label)
        )
        if data.scores is None:
            raise InputError(
                f"--data measures how well similarities follow scores, and {source} holds {data.kind} without: name a column of scores "
                "with --label-column."
            )
        EMBEDDING_PROBLEMS["scored pairs"].check(data, "evaluation")
        return cls(source, [text for column in zip(*data.texts, strict=True) for text in column], data.scores)

    @property
    def metric(self) -> str:
        """Spearman's correlation of cosine similarities and scores."""
        return "Spearman correlation"

    @property
    def examples(self) -> int:
        """Number of pairs."""
        return len(self.scores)

    def judge(self, outputs: Sequence[npt.NDArray[Any]]) -> Judgement:
        """Return the correlation; 0 where all similarities are alike.

        Args:
            outputs: vectors ``[width]`` of all first texts, then of all second ones.
        """
        from scipy.stats import spearmanr

        vectors = np.stack(outputs)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        first, second = np.split(vectors / np.where(lengths > 0, lengths, 1.0), 2)
        cosines = (first * second).sum(1)
        return Judgement(float(spearmanr(cosines, self.scores).statistic) if np.ptp(cosines) > 0 else 0.0)
