"""vLLM's interface: ``/classify``, and adapters that come and go."""

from __future__ import annotations

import time
import uuid
from typing import Literal

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

from rmlora.errors import ConfigError
from rmlora_deploy.inference.classifier import to_prediction
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.lists import Texts
from rmlora_deploy.serving.schemas import declared

__all__ = ["router"]

router = APIRouter(tags=["vLLM"], responses=declared(400, 401, 404, 408, 413, 415, 429, 503))
_LOADED = {"text/plain": {"example": "Success: LoRA adapter 'spam' added successfully."}}
_UNLOADED = {"text/plain": {"example": "Success: LoRA adapter 'spam' removed successfully."}}


class ClassifyRequest(BaseModel):
    """Texts, or pictures as data URLs, to classify."""

    model: str = Field(description="A bundle or one of its adapters.", examples=["spam"])
    input: str | Texts = Field(
        description="A text, or several; for models of images, pictures as `data:image/png;base64,…`.",
        examples=["Call now to win", ["Call now to win", "See you at eight"]],
    )


class Classified(BaseModel):
    """The answer to one input."""

    index: int
    label: str = Field(description="The likeliest.", examples=["spam"])
    probs: list[float] = Field(description="Of every label, in the model's order.", examples=[[0.1, 0.9]])
    num_classes: int = Field(examples=[2])


class Usage(BaseModel):
    """What was read."""

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

    lora_name: str = Field(description="Its name from now on.", examples=["spam"])
    lora_path: str = Field(
        description="Directory of the adapter package, in one of the server's --adapter-dir.", examples=["spam-v2"]
    )


class UnloadRequest(BaseModel):
    """An adapter to unload."""

    lora_name: str = Field(examples=["spam"])


@router.post("/classify", response_model=None, responses={200: {"model": Classification}, **declared(504)})
async def classify(body: ClassifyRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Classify texts or pictures; ``model`` picks the adapter."""
    model = service.registry.model(body.model)
    if not model.task.endswith("classification"):
        raise ConfigError(f"'{model.id}' is for {model.task} and classifies nothing: POST /v1/embeddings.")
    inputs = [body.input] if isinstance(body.input, str) else body.input
    answers, tokens = await service.ask(model, inputs, state)
    data = []
    for number, logits in enumerate(answers):
        prediction = to_prediction(logits, model.labels, model.graph.bundle)
        shares = dict(prediction.ranking)
        data.append(
            {
                "index": number,
                "label": prediction.label,
                "probs": [shares[label] for label in model.labels],
                "num_classes": len(model.labels),
            }
        )
    made = {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model.id,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
    return JSONResponse(made)


@router.post(
    "/v1/load_lora_adapter",
    response_class=PlainTextResponse,
    responses={200: {"description": "It can be asked.", "content": _LOADED}, **declared(403)},
)
async def load_lora_adapter(body: LoadRequest, service: ServiceOf) -> str:
    """Load an adapter package from one of the server's directories."""
    model = await run_in_threadpool(service.registry.load, body.lora_name, body.lora_path)
    return f"Success: LoRA adapter '{model.id}' added successfully."


@router.post(
    "/v1/unload_lora_adapter",
    response_class=PlainTextResponse,
    responses={200: {"description": "It is served no longer.", "content": _UNLOADED}},
)
async def unload_lora_adapter(body: UnloadRequest, service: ServiceOf) -> str:
    """Serve an adapter no longer; what is under way ends with it."""
    await run_in_threadpool(service.registry.unload, body.lora_name)
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."
