"""Vectors for texts or images in the form that a client asks for: fewer dimensions, normalized or as they are."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.service import Service

__all__ = ["VectorForm", "ask_for_vectors"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class VectorForm:
    """How vectors are returned."""

    dimensions: int | None = None
    """The first so many; None for all."""
    normalize: bool | None = None
    """True divides them by their length, after they were shortened; False does not; None keeps the model's way."""
    whole_texts: bool = False
    """Refuse texts that are longer than the model reads; False reads them as far as it goes."""


async def ask_for_vectors(
    service: Service, model: ServedModel, texts: Sequence[str], state: MutableMapping[str, Any], form: VectorForm
) -> tuple[Vectors, int]:
    """Return the vectors of texts or images, float32 ``[texts, dimensions]``, and the number of tokens read.

    Raises:
        ConfigError: the model has no vectors, fewer dimensions than are asked for, or none that are not normalized.
        InputError: a text cannot be used, or the model answers it with NaN or infinity.
        ServingError: see :meth:`Service.ask`.
    """
    if model.task.outputs.kind != "vector":
        raise ConfigError(
            f"'{model.id}' is for {model.task.name} and has no embeddings: use POST {model.task.outputs.route}."
        )
    pooling = model.runner.bundle.pooling
    normalized = pooling is not None and pooling.normalize
    if form.normalize is False and normalized:
        raise ConfigError(
            f"The graph of '{model.id}' normalizes its vectors, so it has no others: leave 'normalize' out, or export the model with "
            "--no-normalize."
        )
    _, answers, tokens = await service.ask_rows(model, texts, state, whole=form.whole_texts)
    vectors = np.stack(answers).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise InputError("The model answers an input with NaN or infinity.")
    return _formed(vectors, model, form, normalize=normalized if form.normalize is None else form.normalize), tokens


def _formed(vectors: Vectors, model: ServedModel, form: VectorForm, *, normalize: bool) -> Vectors:
    width = vectors.shape[1]
    if form.dimensions is not None and form.dimensions > width:
        raise ConfigError(
            f"'{model.id}' has {width} dimensions and cannot return {form.dimensions}: ask for {width} or fewer."
        )
    shorter = vectors[:, : form.dimensions]
    if not normalize or (shorter.shape == vectors.shape and form.normalize is None):
        return shorter
    lengths = np.linalg.norm(shorter, axis=1, keepdims=True)
    return (shorter / np.where(lengths > 0, lengths, 1)).astype(np.float32)
