"""What the scores of a row say: a label with its probability, several labels, or a number (:mod:`rmlora.scoring`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
from rmlora.scoring import Scoring, scoring_of
from rmlora.wording import counted
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["Prediction", "check_finite", "to_prediction", "to_results"]


@dataclass(frozen=True)
class Prediction:
    """The answer to one input, by the conventions of transformers' pipelines."""

    label: str
    """The label with the largest score."""
    score: float
    """Its probability or, for a model that gives numbers, the number."""
    ranking: tuple[tuple[str, float], ...]
    """Every label with its score, the largest first."""
    is_probability: bool = True
    """True if scores are probabilities: of one label out of several (they add up to 1), or of each label by itself."""
    answers: int = 1
    """How many of ``ranking`` are the answer: see :attr:`chosen`."""

    @property
    def chosen(self) -> tuple[tuple[str, float], ...]:
        """What the model answers, the largest first.

        The likeliest label; where several may apply, each whose probability is at least the adapter's threshold (one half unless
        it records another), so perhaps none; every number of a regression.
        """
        return self.ranking[: self.answers]

    @property
    def probability(self) -> float | None:
        """The score if it is a probability; None for a model that gives numbers, such as a reranker or a regression."""
        return self.score if self.is_probability else None


def to_prediction(
    scores: npt.NDArray[np.generic],
    labels: Sequence[str],
    bundle: Bundle,
    function: str | None,
    threshold: float | None = None,
) -> Prediction:
    """Return the prediction that ``scores [labels]`` make.

    Args:
        scores: of the graph.
        labels: of the adapter, or of the bundle.
        bundle: that gave the scores, for error messages.
        function: what turns scores into answers.
        threshold: probability from which a label applies, where several may; None is one half.

    Raises:
        InputError: there are not as many scores as labels, or they are not finite.
    """
    results, scoring = to_results(scores, labels, bundle, function, threshold)
    ranking = tuple((labels[i], float(results[i])) for i in np.argsort(-results, kind="stable"))
    return Prediction(*ranking[0], ranking, scoring.is_probability, scoring.answers(results))


def to_results(
    scores: npt.NDArray[np.generic],
    labels: Sequence[str],
    bundle: Bundle,
    function: str | None,
    threshold: float | None = None,
) -> tuple[npt.NDArray[np.float64], Scoring]:
    """Return the result for each label, in the model's order, and what it means; arguments as :func:`to_prediction`.

    Raises:
        InputError: there are not as many scores as labels, or they are not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape[-1] != len(labels):
        raise InputError(
            f"The graph of {bundle.path} gives {counted(values.shape[-1], 'score')} for {counted(len(labels), 'label')}: the bundle is "
            "inconsistent, export it again."
        )
    check_finite(values, bundle)
    scoring = scoring_of(function, len(labels), threshold)
    return scoring.apply(values), scoring


def check_finite(scores: npt.NDArray[Any], bundle: Bundle) -> None:
    """Raise :class:`InputError` if the graph of ``bundle`` gave a score that is no number."""
    if not np.isfinite(scores).all():
        raise InputError(
            f"The graph of {bundle.path} gives NaN or infinity for this input: its precision ({bundle.precision}) does not "
            "suffice, export it in fp32."
        )
