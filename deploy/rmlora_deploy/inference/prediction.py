"""What the scores of a row say: softmax, and labels by probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmlora.errors import InputError
from rmlora.wording import counted
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["Prediction", "to_prediction"]


@dataclass(frozen=True)
class Prediction:
    """The label a model finds likeliest for one input."""

    label: str
    probability: float
    """Its share in the softmax over the scores."""
    ranking: tuple[tuple[str, float], ...]
    """Every label with its probability, the likeliest first."""


def to_prediction(scores: np.ndarray, labels: Sequence[str], bundle: Bundle) -> Prediction:
    """Return the prediction that ``scores [labels]`` make.

    Raises:
        InputError: there are not as many scores as labels, or they are not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape[-1] != len(labels):
        raise InputError(
            f"The graph of {bundle.path} gives {counted(values.shape[-1], 'score')} for {counted(len(labels), 'label')}: the bundle is "
            "inconsistent, export it again."
        )
    if not np.isfinite(values).all():
        raise InputError(
            f"The graph of {bundle.path} gives NaN or infinity for this input: its precision ({bundle.precision}) does not "
            "suffice, export it in fp32."
        )
    exponents = np.exp(values - values.max())
    shares = exponents / exponents.sum()
    ranking = tuple((labels[i], float(shares[i])) for i in np.argsort(-shares, kind="stable"))
    return Prediction(*ranking[0], ranking)
