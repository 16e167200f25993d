"""Hugging Face's Inference API for token-classification: ``/models/{name}``, and the entities that ``/predict`` answers with.

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

__all__ = ["FoundEntity", "Parameters", "entities", "router"]

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


class FoundEntity(BaseModel):
    """An entity in a text."""

    entity_group: str = Field(description="Its label.", examples=["name"])
    score: float = Field(description="Probability of the label, mean over its words.", examples=[0.98])
    word: str = Field(description="The characters of the text.", examples=["desk lamp"])
    start: int = Field(description="Position of the first character.", examples=[12])
    end: int = Field(description="Position after the last character.", examples=[21])


_FOUND: dict[int | str, dict[str, Any]] = {200: {"model": list[FoundEntity] | list[list[FoundEntity]]}}


@router.post("/models/{name}", response_model=None, responses=_FOUND)
async def predict_with(name: str, body: PredictRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Find entities with the model in the path."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    found = await entities(service.registry.model(name), texts, body.parameters, service, state)
    return JSONResponse(found[0] if isinstance(body.inputs, str) else found)


async def entities(
    model: ServedModel,
    texts: Sequence[str],
    parameters: Parameters | None,
    service: Service,
    state: MutableMapping[str, Any],
) -> list[list[dict[str, Any]]]:
    """Return the entities in every text.

    Args:
        model: to ask.
        texts: to find entities in.
        parameters: how entities are made of tokens; None takes words by their first tokens.
        service: of the server.
        state: of the request.

    Raises:
        ConfigError: the model tags no words.
        InputError: a text cannot be used.
        ServingError: see :meth:`Service.ask_rows`.
    """
    if model.task.outputs.kind != "tokens":
        raise ConfigError(
            f"'{model.id}' is for {model.task.name} and tags no words: use POST {model.task.outputs.route}."
        )
    rows, answers, _ = await service.ask_rows(model, texts, state)
    given = parameters or Parameters()  # type: ignore[call-arg]
    return [
        _plain(
            to_tagging(
                answer, row.arrays, Sentence(text, ()), model.labels, model.runner.bundle,
                given.aggregation_strategy or "first",
            ),
            given.ignore_labels,
        )
        for text, row, answer in zip(texts, rows, answers, strict=True)
    ]  # fmt: skip


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
