"""OpenAI's interface: ``/v1/models`` and ``/v1/embeddings``; ``model`` selects the adapter."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field

from rmlora.errors import InputError
from rmlora_deploy.serving.json_bodies import JsonRoute
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.lists import FIRST_ERROR, Ids, Texts
from rmlora_deploy.serving.schemas import declared
from rmlora_deploy.serving.vectors import VectorForm, ask_for_vectors

__all__ = ["router"]

router = APIRouter(route_class=JsonRoute, prefix="/v1", tags=["OpenAI"], responses=declared(401, 503))


class EmbeddingsRequest(BaseModel):
    """Texts to embed, or images."""

    model: str = Field(description="A model for feature extraction.", examples=["sentences"])
    input: str | Texts | Ids | Annotated[list[Ids | Texts], FIRST_ERROR] = Field(
        description="One text or several, or images as `data:image/png;base64,…`; token ids are refused.",
        examples=[["Call now to win", "See you at eight"]],
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="Return the first so many, normalized again if the model normalizes; for models that were trained for it.",
    )


@router.get("/models")
async def models(service: ServiceOf) -> dict[str, Any]:
    """List the bundles and their adapters."""
    registry = service.registry
    return {"object": "list", "data": [_card(model, available=registry.available(model)) for model in registry.models]}


@router.get("/models/{name}", responses=declared(404))
async def model(name: str, service: ServiceOf) -> dict[str, Any]:
    """Describe one model."""
    found = service.registry.model(name)
    return _card(found, available=service.registry.available(found))


@router.post("/embeddings", responses=declared(400, 404, 408, 413, 415, 429, 504))
async def embeddings(body: EmbeddingsRequest, service: ServiceOf, state: StateOf) -> dict[str, Any]:
    """Embed texts or images."""
    model = service.registry.model(body.model)
    vectors, tokens = await ask_for_vectors(service, model, _texts(body.input), state, VectorForm(body.dimensions))
    return {
        "object": "list",
        "model": model.id,
        "data": [
            {"object": "embedding", "index": number, "embedding": _written(vector, body.encoding_format)}
            for number, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _texts(given: str | list[str] | list[int] | list[list[int] | list[str]]) -> list[str]:
    """Return the texts of a request.

    Raises:
        InputError: it has lists of texts, or token ids. Clients send those of OpenAI's tokenizer, which stand for other words in
            this model.
    """
    texts = [given] if isinstance(given, str) else [item for item in given if isinstance(item, str)]
    if any(isinstance(item, list) and not (item and isinstance(item[0], int)) for item in given):
        raise InputError("The input has a list in its list: send one text, or one list of texts.")
    if len(texts) < (1 if isinstance(given, str) else len(given)):
        raise InputError(
            "The input has token ids, which stand for other words in this model: send texts (in LangChain, "
            "check_embedding_ctx_length=False)."
        )
    return texts


def _written(vector: np.ndarray, form: str) -> list[float] | str:
    values = np.asarray(vector, "<f4")
    return base64.b64encode(values.tobytes()).decode() if form == "base64" else [float(value) for value in values]


def _card(model: ServedModel, *, available: bool) -> dict[str, Any]:
    """Describe a model as vLLM does, with more fields."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "rmlora-deploy",
        "root": model.runner.name,
        "parent": model.runner.name if model.adapter is not None else None,
        "task": model.task.name,
        "labels": list(model.labels),
        "input_form": model.input_form,
        "function_to_apply": model.function_to_apply,
        "threshold": model.threshold,
        "rank": model.rank,
        "bytes": model.nbytes if model.adapter is not None else model.runner.bundle.manifest.model.bytes,
        "precision": model.runner.bundle.precision,
        "available": available,
    }
