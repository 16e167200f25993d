"""Classifying texts or images with a bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rmlora.errors import ConfigError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.opened_bundle import OpenedBundle
from rmlora_deploy.inference.prediction import Prediction, to_prediction
from rmlora_deploy.runtime import AdapterChoice

__all__ = ["Classifier"]


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
        if bundle.task.outputs.kind != "scores":
            raise ConfigError(f"{bundle.path} is for {bundle.task.name} and classifies nothing: open it with load().")

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
            to_prediction(scores, entry.labels, self.bundle, entry.function_to_apply, entry.threshold)
            for entry, _, scores in self._run(inputs, adapters, batch_size)
        ]
