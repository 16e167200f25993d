"""text-embeddings-inference's ``/embed``, ``/similarity`` and ``/info``, and the paths of Hugging Face's Inference API for vectors.

``huggingface_hub.InferenceClient`` reads them: ``feature_extraction(text, model="http://HOST/embed")`` and
``sentence_similarity(text, texts, model="http://HOST/similarity")``, or with ``/models/NAME/pipeline/…`` where the server has
several models.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from rmlora._version import __version__
from rmlora.errors import ConfigError
from rmlora_deploy.serving.json_bodies import JsonRoute
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.pair_scores import chosen_model
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.lists import Texts
from rmlora_deploy.serving.schemas import declared
from rmlora_deploy.serving.service import Service
from rmlora_deploy.serving.vectors import VectorForm, ask_for_vectors

__all__ = ["router"]

router = APIRouter(
    route_class=JsonRoute,
    tags=["text-embeddings-inference"],
    responses=declared(400, 401, 404, 408, 413, 415, 429, 503),
)


class Reading(BaseModel):
    """How texts are read."""

    truncate: bool = Field(
        True,
        description="Read longer texts as far as the model goes; false refuses them. Unlike the original's, true by default.",
    )
    truncation_direction: Literal["Right", "right", "Left", "left"] | None = Field(
        None, description="Where longer texts are cut: where the model's tokenizer does it, or the request is refused."
    )
    prompt_name: str | None = Field(None, description="Refused: the models have no prompts.")


class EmbedRequest(Reading):
    """Texts to embed, or images."""

    model: str | None = Field(
        None, description="May be left out if the server has a single model.", examples=["sentences"]
    )
    inputs: str | Texts = Field(
        description="One text or several; for image models, images as `data:image/png;base64,…`.",
        examples=["See you at eight", ["Call now to win"]],
    )
    normalize: bool = Field(
        True, description="Divide vectors by their length; false only where the model does not do so itself."
    )
    dimensions: int | None = Field(
        None, ge=1, strict=True, description="Return the first so many; for models that were trained for it."
    )
    encoding_format: Literal["float"] | None = Field(None, description="`float`, as the answer is.")


class Sentences(BaseModel):
    """A text or an image, and those that it is compared with."""

    source_sentence: str = Field(examples=["Where is my parcel?"])
    sentences: Texts = Field(examples=[["It never came.", "It rains."]])


class SimilarityRequest(BaseModel):
    """Texts or images to compare."""

    model: str | None = Field(
        None, description="May be left out if the server has a single model.", examples=["sentences"]
    )
    inputs: Sentences
    parameters: Reading | None = None


@router.post("/embed", response_model=None, responses=declared(504))
async def embed(body: EmbedRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Return the vector of every text or image, in a list even of one."""
    return await _embed(chosen_model(service, body.model), body, service, state)


@router.post("/models/{name}/pipeline/image-feature-extraction", response_model=None, responses=declared(504))
@router.post("/models/{name}/pipeline/feature-extraction", response_model=None, responses=declared(504))
async def embed_with(name: str, body: EmbedRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Return vectors as `/embed` does, with the model in the path."""
    return await _embed(service.registry.model(name), body, service, state)


@router.post("/similarity", response_model=None, responses=declared(504))
async def similarity(body: SimilarityRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Return the cosine of the source sentence's vector and that of every other sentence."""
    return await _similarity(chosen_model(service, body.model), body, service, state)


@router.post("/models/{name}/pipeline/sentence-similarity", response_model=None, responses=declared(504))
async def similarity_with(name: str, body: SimilarityRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Return cosines as `/similarity` does, with the model in the path."""
    return await _similarity(service.registry.model(name), body, service, state)


@router.get("/info")
async def info(service: ServiceOf, model: str | None = None) -> dict[str, Any]:
    """Describe a model and its limits; `model` may be left out if the server has a single one."""
    found = chosen_model(service, model)
    return {
        "model_id": found.id,
        "model_sha": None,
        "model_dtype": _DTYPES.get(found.runner.bundle.precision, found.runner.bundle.precision),
        "model_type": _model_type(found),
        "max_input_length": found.max_length,
        "max_client_batch_size": service.settings.max_inputs,
        "max_batch_requests": service.settings.max_batch,
        "auto_truncate": True,
        "version": __version__,
    }


_DTYPES = {"fp32": "float32", "fp16": "float16"}
"""Precision of a bundle → what text-embeddings-inference calls it."""


async def _embed(
    model: ServedModel, body: EmbedRequest, service: Service, state: MutableMapping[str, Any]
) -> JSONResponse:
    _check_reading(model, body)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    form = VectorForm(body.dimensions, body.normalize, whole_texts=not body.truncate)
    vectors, _ = await ask_for_vectors(service, model, texts, state, form)
    return JSONResponse(vectors.tolist())


async def _similarity(
    model: ServedModel, body: SimilarityRequest, service: Service, state: MutableMapping[str, Any]
) -> JSONResponse:
    service.reader.check_count(len(body.inputs.sentences))
    reading = body.parameters or Reading()  # type: ignore[call-arg]
    _check_reading(model, reading)
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    form = VectorForm(normalize=True, whole_texts=not reading.truncate)
    vectors, _ = await ask_for_vectors(service, model, texts, state, form)
    return JSONResponse(np.clip(vectors[1:] @ vectors[0], -1.0, 1.0).tolist())


def _check_reading(model: ServedModel, reading: Reading) -> None:
    """Raise :class:`ConfigError` for what the model cannot do."""
    if reading.prompt_name is not None:
        raise ConfigError(f"'{model.id}' has no prompts: leave 'prompt_name' out, and put the prompt before the text.")
    side = model.runner.truncation_side
    if reading.truncation_direction is not None and reading.truncation_direction.lower() != side:
        raise ConfigError(f"'{model.id}' cuts long texts on the {side}: leave 'truncation_direction' out.")


def _model_type(model: ServedModel) -> dict[str, Any] | None:
    """Return what the model is in text-embeddings-inference's words; None if that has no word for it."""
    kind, labels = model.task.outputs.kind, model.labels
    if kind == "vector":
        pooling = model.runner.bundle.pooling
        return {"embedding": {"pooling": _POOLINGS.get(pooling.mode, pooling.mode) if pooling is not None else None}}
    if kind != "scores":
        return None
    names = dict(enumerate(labels))
    about = {"id2label": names, "label2id": {label: number for number, label in names.items()}}
    return {"reranker" if len(labels) == 1 else "classifier": about}


_POOLINGS = {"last": "last_token"}
"""Pooling → what text-embeddings-inference calls it."""
