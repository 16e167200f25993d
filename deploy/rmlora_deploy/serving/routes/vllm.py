"""vLLM's interface: ``/classify``, and loading and unloading adapters."""

from __future__ import annotations

import time
import uuid
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

from rmlora.errors import ConfigError
from rmlora_deploy.inference.prediction import to_results
from rmlora_deploy.serving.json_bodies import JsonRoute
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.lists import TextsOrPairs, texts_and_pairs
from rmlora_deploy.serving.schemas import declared

__all__ = ["router"]

router = APIRouter(route_class=JsonRoute, tags=["vLLM"], responses=declared(400, 401, 404, 408, 413, 415, 429, 503))
_LOADED = {"text/plain": {"example": "Success: LoRA adapter 'spam' added successfully."}}
_UNLOADED = {"text/plain": {"example": "Success: LoRA adapter 'spam' removed successfully."}}


class ClassifyRequest(BaseModel):
    """Texts, pairs of texts, or images as data URLs, to classify."""

    model: str = Field(description="A bundle or one of its adapters.", examples=["spam"])
    input: str | TextsOrPairs = Field(
        description="One text or several; a pair of texts is a list of two within the list; for image models, images as "
        "`data:image/png;base64,…`.",
        examples=["Call now to win", ["Call now to win", "See you at eight"], [["A man plays.", "It rains."]]],
    )


class Classified(BaseModel):
    """The answer to one input."""

    index: int
    label: str = Field(description="The one with the largest of `probs`.", examples=["spam"])
    probs: list[float] = Field(
        description="For each label, in the model's order: its probability or, for a model that gives numbers, the number. "
        "`function_to_apply` in `/v1/models` says which: softmax (one label out of several), sigmoid (every label by "
        "itself; with a single label a score between 0 and 1) or none (regression).",
        examples=[[0.1, 0.9]],
    )
    num_classes: int = Field(examples=[2])


class Usage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int


class Classification(BaseModel):
    """The answers, in the order of the inputs."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class LoadRequest(BaseModel):
    """An adapter to load."""

    lora_name: str = Field(description="The name to give it.", examples=["spam"])
    lora_path: str = Field(
        description="Directory of the adapter package, inside one of the server's --adapter-dir.", examples=["spam-v2"]
    )


class UnloadRequest(BaseModel):
    """An adapter to unload."""

    lora_name: str = Field(examples=["spam"])


@router.post("/classify", response_model=None, responses={200: {"model": Classification}, **declared(504)})
async def classify(body: ClassifyRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Classify texts, pairs of texts or images; ``model`` selects the adapter."""
    model = service.registry.model(body.model)
    if model.task.outputs.route != "/classify":
        raise ConfigError(
            f"'{model.id}' is for {model.task.name} and has no labels: use POST {model.task.outputs.route}."
        )
    inputs = [body.input] if isinstance(body.input, str) else texts_and_pairs(body.input)
    answers, tokens = await service.ask(model, inputs, state)
    data = []
    for number, logits in enumerate(answers):
        results, _ = to_results(logits, model.labels, model.runner.bundle, model.function_to_apply)
        data.append(
            {
                "index": number,
                "label": model.labels[int(results.argmax())],
                "probs": results.tolist(),
                "num_classes": len(model.labels),
            }
        )
    content = {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model.id,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
    return JSONResponse(content)


@router.post(
    "/v1/load_lora_adapter",
    response_class=PlainTextResponse,
    responses={200: {"description": "The adapter is loaded.", "content": _LOADED}, **declared(403)},
)
async def load_lora_adapter(body: LoadRequest, service: ServiceOf) -> str:
    """Load an adapter package from one of the server's directories."""
    model = await service.loading.run(service.registry.load, body.lora_name, body.lora_path)
    return f"Success: LoRA adapter '{model.id}' added successfully."


@router.post(
    "/v1/unload_lora_adapter",
    response_class=PlainTextResponse,
    responses={200: {"description": "The adapter is unloaded.", "content": _UNLOADED}},
)
async def unload_lora_adapter(body: UnloadRequest, service: ServiceOf) -> str:
    """Unload an adapter; batches that use it already are completed."""
    await service.loading.run(service.registry.unload, body.lora_name)
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."
