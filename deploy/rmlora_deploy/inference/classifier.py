"""Classifying texts or images with a bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.opened_bundle import OpenedBundle
from rmlora_deploy.runtime import AdapterChoice

__all__ = ["Classifier", "Prediction", "to_prediction"]


@dataclass(frozen=True)
class Prediction:
    """The label a model finds likeliest for one input."""

    label: str
    probability: float
    """Its share in the softmax over the scores."""
    ranking: tuple[tuple[str, float], ...]
    """Every label with its probability, the likeliest first."""


class Classifier(OpenedBundle):
    """A bundle opened on one execution provider; with branches every input may use another adapter.

    >>> Classifier.open("spam-bundle").predict(["You won! Call now"])[0].label  # doctest: +SKIP
    'spam'
    >>> both = Classifier.open("both")  # doctest: +SKIP
    >>> [p.label for p in both.predict(["Call now", "Who was it ?"], ["spam", "trec"])]  # doctest: +SKIP
    ['spam', 'HUM']
    """

    @staticmethod
    def _check_task(bundle: Bundle) -> None:
        if not bundle.task.outputs.has_labels:
            raise ConfigError(
                f"{bundle.path} gives vectors and classifies nothing: open it with Embedder, or with load()."
            )

    def predict(
        self,
        inputs: Sequence[Any],
        adapters: AdapterChoice | Sequence[AdapterChoice] = None,
        *,
        batch_size: int = 32,
    ) -> list[Prediction]:
        """Return a prediction for every text or image, in order, with the labels of its own adapter.

        Args:
            inputs: texts; or image paths, encoded images or PIL images.
            adapters: with branches, one choice for all inputs or one for each: a name, ``{name: strength}``, or None for
                the base.
            batch_size: inputs computed at once.

        Raises:
            InputError: an input or an adapter cannot be used, or the graph gives no usable scores.
            ConfigError: the choices do not fit the inputs, or the bundle is merged and there is nothing to choose.
        """
        return [
            to_prediction(scores, entry.labels, self.bundle)
            for entry, scores in self._run(inputs, adapters, batch_size)
        ]


def to_prediction(scores: np.ndarray, labels: Sequence[str], bundle: Bundle) -> Prediction:
    """Return the prediction that ``scores [labels]`` make.

    Raises:
        InputError: there are not as many scores as labels, or they are not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape[-1] != len(labels):
        raise InputError(
            f"The graph of {bundle.path} gives {values.shape[-1]} scores for {len(labels)} labels: the bundle is "
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
