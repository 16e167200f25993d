"""Hugging Face's interface for token-classification: ``/predict`` and ``/models/{name}``, as its Inference API answers.

``huggingface_hub.InferenceClient.token_classification(text, model="http://HOST/models/NAME")`` calls it.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from rmlora.errors import ConfigError
from rmlora.words import Sentence
from rmlora_deploy.inference.entity_spans import Tagging, to_tagging
from rmlora_deploy.serving.json_bodies import JsonRoute
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.lists import Texts
from rmlora_deploy.serving.schemas import declared
from rmlora_deploy.serving.service import Service

__all__ = ["ROUTE", "router"]

ROUTE = "/predict"
router = APIRouter(
    route_class=JsonRoute, tags=["Hugging Face"], responses=declared(400, 401, 404, 408, 413, 415, 429, 503, 504)
)


class Parameters(BaseModel):
    """How entities are made of tokens."""

    model_config = ConfigDict(extra="forbid")

    aggregation_strategy: Literal["first", "simple"] | None = Field(
        None,
        description="`first`, the default, labels words by their first token; `simple` labels every token by itself.",
    )
    ignore_labels: Texts = Field(default_factory=list, description="Labels to leave out; `O` always is.")


class PredictRequest(BaseModel):
    """Texts to find entities in."""

    inputs: str | Texts = Field(
        description="One text or several.", examples=["Turn on the desk lamp", ["Turn on the desk lamp"]]
    )
    parameters: Parameters | None = None


class ModelRequest(PredictRequest):
    """Texts to find entities in, and the model that does it."""

    model: str | None = Field(
        None, description="A bundle or one of its adapters; may be left out if there is only one.", examples=["slots"]
    )


class FoundEntity(BaseModel):
    """An entity in a text."""

    entity_group: str = Field(description="Its label.", examples=["name"])
    score: float = Field(description="Probability of the label, mean over its words.", examples=[0.98])
    word: str = Field(description="The characters of the text.", examples=["desk lamp"])
    start: int = Field(description="Position of the first character.", examples=[12])
    end: int = Field(description="Position after the last character.", examples=[21])


_FOUND: dict[int | str, dict[str, Any]] = {200: {"model": list[FoundEntity] | list[list[FoundEntity]]}}


@router.post(ROUTE, response_model=None, responses=_FOUND)
async def predict(body: ModelRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Find entities; ``model`` selects the adapter. One text gets a list of entities, several get a list of such lists."""
    model = service.registry.model(body.model) if body.model is not None else _only(service)
    return await _tag(model, body, service, state)


@router.post("/models/{name}", response_model=None, responses=_FOUND)
async def predict_with(name: str, body: PredictRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Find entities with the model in the path."""
    return await _tag(service.registry.model(name), body, service, state)


def _only(service: Service) -> ServedModel:
    """Return the model if there is no other.

    Raises:
        ConfigError: there are others.
    """
    models = service.registry.models
    if len(models) != 1:
        raise ConfigError("The server has several models: name one of those in GET /v1/models as 'model'.")
    return models[0]


async def _tag(
    model: ServedModel, body: PredictRequest, service: Service, state: MutableMapping[str, Any]
) -> JSONResponse:
    if model.task.outputs.route != ROUTE:
        raise ConfigError(
            f"'{model.id}' is for {model.task.name} and tags no words: use POST {model.task.outputs.route}."
        )
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    rows, answers, _ = await service.ask_rows(model, texts, state)
    given = body.parameters or Parameters()  # type: ignore[call-arg]
    found = [
        _plain(
            to_tagging(
                answer, row.arrays, Sentence(text, ()), model.labels, model.runner.bundle,
                given.aggregation_strategy or "first",
            ),
            given.ignore_labels,
        )
        for text, row, answer in zip(texts, rows, answers, strict=True)
    ]  # fmt: skip
    return JSONResponse(found[0] if isinstance(body.inputs, str) else found)


def _plain(tagging: Tagging, ignored: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "entity_group": entity.label,
            "score": entity.score,
            "word": entity.text,
            "start": entity.start,
            "end": entity.end,
        }
        for entity in tagging.entities
        if entity.label not in ignored
    ]
