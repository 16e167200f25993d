"""Embedding texts or images with a bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.opened_bundle import OpenedBundle
from rmlora_deploy.runtime import AdapterChoice

__all__ = ["Embedder", "cosines"]

Vectors = npt.NDArray[np.float32]


class Embedder(OpenedBundle):
    """A bundle for embeddings opened on one execution provider; with branches every input may use another adapter.

    >>> vectors = Embedder.open("faq-bundle").embed(["How do I pay ?", "Where is my order ?"])  # doctest: +SKIP
    >>> vectors.shape  # doctest: +SKIP
    (2, 384)
    """

    @staticmethod
    def _check_task(bundle: Bundle) -> None:
        if not bundle.task.outputs.pools:
            raise ConfigError(f"{bundle.path} is for {bundle.task.name}: open it with Classifier, or with load().")

    def embed(
        self, inputs: Sequence[Any], adapters: AdapterChoice | Sequence[AdapterChoice] = None, *, batch_size: int = 32
    ) -> Vectors:
        """Return ``[inputs, width]`` float32, in the order of ``inputs``; no inputs have no vectors.

        Args:
            inputs: texts; for image models paths, encoded bytes or PIL images.
            adapters: with branches, one choice for all inputs or one for each: a name, ``{name: strength}``, or None for the
                base.
            batch_size: inputs computed at once.

        Raises:
            InputError: an input or an adapter cannot be used, or the graph gives no usable numbers.
            ConfigError: the choices do not fit the inputs, or the bundle is merged and there is nothing to choose.
        """
        found = [vector for _, _, vector in self._run(inputs, adapters, batch_size)]
        if not found:
            width = self.bundle.manifest.model.outputs[0].shape[-1]
            return np.zeros((0, width if isinstance(width, int) else 0), np.float32)
        vectors = np.stack(found).astype(np.float32)
        if not np.isfinite(vectors).all():
            raise InputError(
                f"The graph of {self.bundle.path} gives NaN or infinity for these inputs: its precision "
                f"({self.bundle.precision}) does not suffice, export it in fp32."
            )
        return vectors


def cosines(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Return ``[rows, rows]``: the cosine of every two of ``vectors [rows, width]``."""
    wide = vectors.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T)
