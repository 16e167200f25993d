"""What rows of texts teach an encoder: the losses and evaluators of sentence-transformers for each kind of rows."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from rmlora.errors import InputError
from rmlora.training.embedding_columns import RowKind
from rmlora.training.embedding_data import EmbeddingData
from rmlora.training.embedding_evaluators import Vectors, retrieval_figures, similarity_figures, triplet_figures
from rmlora.training.vector_problem import NO_MODEL, VectorProblem
from rmlora.wording import counted

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["EMBEDDING_PROBLEMS", "EmbeddingProblem"]


class EmbeddingProblem(VectorProblem):
    """What one kind of rows of texts teaches."""

    name: ClassVar[RowKind]

    @abstractmethod
    def targets(self, data: EmbeddingData) -> list[Any]:
        """Return for every row what loss and metrics need to know of it beside its vectors."""

    @abstractmethod
    def check(self, data: EmbeddingData, split: str, remedy: str = "give other data") -> list[str]:
        """Return sentences about rows that teach less than they seem to.

        Args:
            data: of a split.
            split: its name.
            remedy: what the user can do if the data does not suffice.

        Raises:
            InputError: nothing can be learned from the data, or measured on it.
        """


class ScoredPairs(EmbeddingProblem):
    """Pairs with a score: a pair with a higher one shall be more similar. The scores' scale does not matter."""

    name = "scored pairs"
    best_metrics = ("spearman", "pearson", "loss")
    fewest_rows = 2

    def loss(self) -> Module:
        """Return CoSENT, which sentence-transformers recommends over a regression of the cosine."""
        from sentence_transformers.sentence_transformer.losses import CoSENTLoss

        return CoSENTLoss(NO_MODEL)

    def targets(self, data: EmbeddingData) -> list[float]:
        """Return the scores."""
        return list(data.scores or ())

    def metrics(self, vectors: Vectors, targets: npt.NDArray[Any]) -> dict[str, float]:
        """Return Spearman's and Pearson's correlation of cosine and score; 0 where all cosines are alike."""
        return similarity_figures(vectors, targets)

    def check(self, data: EmbeddingData, split: str, remedy: str = "give other data") -> list[str]:
        """Refuse scores that are all alike."""
        values = set(data.scores or ())
        if len(values) < 2:
            raise InputError(
                f"All scores of the {split} data ({counted(len(data.texts), 'row')} of {data.source}, '{data.columns.score}') are "
                f"{next(iter(values)):g}, so no pair is more similar than another: check --label-column, or {remedy}."
            )
        return []


class Pairs(EmbeddingProblem):
    """Pairs that belong together: the first text shall be more similar to its second than to those of other rows."""

    name: ClassVar[RowKind] = "pairs"
    best_metrics: ClassVar[tuple[str, ...]] = ("ndcg_at_10", "mrr_at_10", "accuracy_at_1", "loss")
    fewest_rows = 2

    def loss(self) -> Module:
        """Return the cross-entropy over the second texts of the batch (and the negatives, if rows have them)."""
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        return MultipleNegativesRankingLoss(NO_MODEL)

    def targets(self, data: EmbeddingData) -> list[Any]:
        """Return the number of every row's first and of its second text, each counted among the different ones."""
        firsts, seconds = (_numbered([texts[column] for texts in data.texts]) for column in (0, 1))
        return list(zip(firsts, seconds, strict=True))

    def metrics(self, vectors: Vectors, targets: npt.NDArray[Any]) -> dict[str, float]:
        """Return how well the first texts find their second ones among all in the data."""
        return retrieval_figures(vectors, targets)

    def check(self, data: EmbeddingData, split: str, remedy: str = "give other data") -> list[str]:
        """Refuse data in which no second text could be wrong, and say how many rows share a text, which is then no negative."""
        if len({texts[1] for texts in data.texts}) < 2:
            raise InputError(
                f"The {split} data ({counted(len(data.texts), 'row')} of {data.source}) has only one different text in "
                f"'{data.columns.second}', so there is none that a row could be told from: {remedy}."
            )
        return _shared_texts(data) if split == "train" else []


class Triplets(Pairs):
    """Pairs that belong together, with a third text that does not."""

    name = "triplets"
    best_metrics = ("accuracy", "loss")
    fewest_rows = 1

    def metrics(self, vectors: Vectors, targets: npt.NDArray[Any]) -> dict[str, float]:
        """Return the share of rows whose first text is more similar to the second than to the third."""
        return triplet_figures(vectors)

    def check(self, data: EmbeddingData, split: str, remedy: str = "give other data") -> list[str]:
        """Refuse rows whose second and third text are the same."""
        for row, texts in enumerate(data.texts):
            if texts[1] == texts[2]:
                raise InputError(
                    f"{data.where(row)} has the same text in '{data.columns.second}' and '{data.columns.negative}': correct or remove it."
                )
        return _shared_texts(data) if split == "train" else []


EMBEDDING_PROBLEMS: Mapping[RowKind, EmbeddingProblem] = {
    problem.name: problem for problem in (ScoredPairs(), Pairs(), Triplets())
}
"""Kind of rows → what they teach."""


def _numbered(values: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def _shared_texts(data: EmbeddingData) -> list[str]:
    """Return a sentence if rows share a text, since each row's second text is a wrong one for the others of its batch."""
    firsts, seconds = (Counter(texts[column] for texts in data.texts) for column in (0, 1))
    count = sum(firsts[texts[0]] > 1 or seconds[texts[1]] > 1 for texts in data.texts)
    if not count:
        return []
    return [
        f"{counted(count, 'row')} of {data.source} {'shares' if count == 1 else 'share'} a text with another row: where two of them meet "
        "in a batch, each is learned as a wrong answer to the other; smaller batches, or fewer such rows, make that rarer."
    ]
