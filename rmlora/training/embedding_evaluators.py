"""The evaluators of sentence-transformers for vectors that are known already."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Vectors", "retrieval_figures", "similarity_figures", "triplet_figures"]

Vectors = npt.NDArray[np.floating[Any]]
"""``[rows, texts of a row, width]``."""


def similarity_figures(vectors: Vectors, scores: npt.NDArray[Any]) -> dict[str, float]:
    """Return Spearman's and Pearson's correlation of the pairs' cosines and ``scores``; 0 where all cosines are alike."""
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    model, (first, second) = _known(vectors)
    evaluator = EmbeddingSimilarityEvaluator(
        first, second, scores.tolist(), similarity_fn_names=["cosine"], write_csv=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about cosines that are all alike
        found = evaluator(model)
    return {name: _finite(found[f"{name}_cosine"]) for name in ("spearman", "pearson")}


def retrieval_figures(vectors: Vectors, numbers: npt.NDArray[Any]) -> dict[str, float]:
    """Return how well first texts find their second ones among all of these: NDCG@10, MRR@10 and the share found first.

    Args:
        vectors: of pairs, or of rows that start with one.
        numbers: ``[rows, 2]``, the same number for equal first texts, and for equal second ones.
    """
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    model, (first, second, *_) = _known(vectors)
    relevant: dict[str, set[str]] = {}
    for query, answer in numbers.tolist():
        relevant.setdefault(str(query), set()).add(str(answer))
    evaluator = InformationRetrievalEvaluator(
        {str(query): text for query, text in zip(numbers[:, 0].tolist(), first, strict=True)},
        {str(answer): text for answer, text in zip(numbers[:, 1].tolist(), second, strict=True)},
        relevant,
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[1],
        precision_recall_at_k=[1],
        map_at_k=[10],
        score_functions={"cosine": cos_sim},
        write_csv=False,
    )
    found = evaluator(model)
    return {
        f"{name}_at_{k}": float(found[f"cosine_{name}@{k}"]) for name, k in (("ndcg", 10), ("mrr", 10), ("accuracy", 1))
    }


def triplet_figures(vectors: Vectors) -> dict[str, float]:
    """Return the share of triplets whose first text is more similar to the second than to the third."""
    from sentence_transformers.sentence_transformer.evaluation import TripletEvaluator

    model, (first, second, third) = _known(vectors)
    evaluator = TripletEvaluator(first, second, third, similarity_fn_names=["cosine"], write_csv=False)
    return {"accuracy": float(evaluator(model)["cosine_accuracy"])}


def _known(vectors: Vectors) -> tuple[Any, list[Any]]:
    """Return what stands for the model, and for each column the texts to ask it for, which are numbers of vectors."""
    rows, columns = vectors.shape[:2]
    model = _KnownVectors(vectors.transpose(1, 0, 2).reshape(rows * columns, -1))
    return model, [list(range(column * rows, (column + 1) * rows)) for column in range(columns)]


class _KnownVectors:
    """Stands for a model whose texts are the numbers of their vectors."""

    def __init__(self, vectors: npt.NDArray[Any]) -> None:
        self._vectors = np.asarray(vectors, np.float32)
        self.model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *_: None)
        """Where evaluators write to the model's card; ours is another one."""

    def encode(self, numbers: Sequence[int], **_: Any) -> npt.NDArray[np.float32]:
        """Return the vectors of these numbers, ``[numbers, width]``."""
        return self._vectors[list(numbers)]

    encode_query = encode_document = encode


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0
