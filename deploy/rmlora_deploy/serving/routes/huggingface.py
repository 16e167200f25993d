"""Hugging Face's Inference API for labels of texts and images, entities, and answers to questions: ``/models/{name}``.

``huggingface_hub.InferenceClient.token_classification(text, model="http://HOST/models/NAME")`` calls it, and so do
``text_classification(text, model=…)``, ``image_classification(file, model=…)`` and ``question_answering(question=…, context=…,
model=…)``. ``/predict`` answers models for entities and for questions in the same form.
"""

from __future__ import annotations

import base64
from collections.abc import MutableMapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from rmlora.answer_spans import LONGEST_ANSWER
from rmlora.errors import ConfigError, InputError
from rmlora.text_pair import TextPair
from rmlora.words import Sentence
from rmlora_deploy.inference.answerer import to_answers
from rmlora_deploy.inference.entity_spans import Tagging, to_tagging
from rmlora_deploy.serving.json_bodies import JsonRoute
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.lists import Texts
from rmlora_deploy.serving.routes.ranked_labels import ranked_labels
from rmlora_deploy.serving.schemas import declared
from rmlora_deploy.serving.service import Service

__all__ = ["ONE_QUESTION", "Asked", "FoundEntity", "Parameters", "entities", "found", "router"]

router = APIRouter(
    route_class=JsonRoute, tags=["Hugging Face"], responses=declared(400, 401, 404, 408, 413, 415, 429, 503, 504)
)


class Parameters(BaseModel):
    """How entities are made of tokens, or which answers or labels are given."""

    model_config = ConfigDict(extra="forbid")

    aggregation_strategy: Literal["first", "simple"] | None = Field(
        None,
        description="`first`, the default, labels words by their first token; `simple` labels every token by itself.",
    )
    ignore_labels: Texts = Field(default_factory=list, description="Labels to leave out; `O` always is.")
    top_k: int | None = Field(
        None,
        ge=1,
        le=100,
        strict=True,
        description="Of answers: how many, in a list; without it there is one. Of labels: how many; without it all.",
    )
    max_answer_len: int | None = Field(
        None, ge=1, le=512, strict=True, description="Tokens of the longest answer; 30 without it."
    )
    handle_impossible_answer: bool | None = Field(
        None, description="Whether there may be no answer; without it, models that learned it may say so."
    )

    function_to_apply: Literal["none"] | None = Field(
        None,
        description="Of labels: `none` returns the model's outputs as they are; without it, what the model was trained with.",
    )

    def check(self, kind: str) -> None:
        """Raise :class:`ConfigError` for a parameter that a model with such outputs does not have."""
        what, own = _OWN.get(kind, _OWN["spans"])
        if others := sorted(self.model_fields_set - own):
            raise ConfigError(
                f"'{others[0]}' is no parameter of {what}: leave it out, or give {', '.join(sorted(own))}."
            )


_OWN = {
    "tokens": ("entities", {"aggregation_strategy", "ignore_labels"}),
    "spans": ("answers", {"top_k", "max_answer_len", "handle_impossible_answer"}),
    "scores": ("labels", {"top_k", "function_to_apply"}),
}
"""Kind of outputs → what they are, and its parameters."""


class Asked(BaseModel):
    """A question and the text that holds its answer."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(examples=["Which lamp is on?"])
    context: str = Field(examples=["The desk lamp is on, the lamp in the hall is off."])


def _single(value: Any) -> Any:
    """Refuse several questions, which would otherwise be called wrong texts."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        raise ValueError("a request asks one question: give one object, and send a request for each")
    return value


ONE_QUESTION = BeforeValidator(_single)


class PredictRequest(BaseModel):
    """Texts or images to classify, texts to find entities in, or a question with its context."""

    inputs: Annotated[str | Texts | Asked | SkipJsonSchema[bytes], ONE_QUESTION] = Field(
        description="One text or several; one image or several in base64, with or without `data:image/png;base64,` before it; or a "
        "question with its context.",
        examples=["Turn on the desk lamp", {"question": "Which lamp is on?", "context": "The desk lamp is on."}],
    )
    parameters: Parameters | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_image(cls, value: Any) -> Any:
        """Take a body that is declared as an image for the image to classify."""
        return {"inputs": value} if isinstance(value, bytes) else value


class FoundEntity(BaseModel):
    """An entity in a text."""

    entity_group: str = Field(description="Its label.", examples=["name"])
    score: float = Field(description="Probability of the label, mean over its words.", examples=[0.98])
    word: str = Field(description="The characters of the text.", examples=["desk lamp"])
    start: int = Field(description="Position of the first character.", examples=[12])
    end: int = Field(description="Position after the last character.", examples=[21])


class Answer(BaseModel):
    """An answer to a question."""

    answer: str = Field(description="Characters of the context; empty if it has no answer.", examples=["desk lamp"])
    score: float = Field(description="Its probability.", examples=[0.97])
    start: int = Field(description="Position of the first character.", examples=[4])
    end: int = Field(description="Position after the last character.", examples=[13])


class ScoredLabel(BaseModel):
    """A label of a text or an image."""

    label: str = Field(examples=["spam"])
    score: float = Field(description="Its probability, or the model's output.", examples=[0.98])


_FOUND: dict[int | str, dict[str, Any]] = {
    200: {
        "model": list[FoundEntity]
        | list[list[FoundEntity]]
        | Answer
        | list[Answer]
        | list[list[ScoredLabel]]
        | list[ScoredLabel],
    }
}


_IMAGE_BODY = {"requestBody": {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}


@router.post("/models/{name}", response_model=None, responses=_FOUND, openapi_extra=_IMAGE_BODY)
async def predict_with(name: str, body: PredictRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Classify texts or images, or find entities or the answer to a question, with the model in the path.

    An image may be the body itself, declared as `image/png` or another type of image.
    """
    model = service.registry.model(name)
    given, reads = body.inputs, model.task.inputs.modality
    if isinstance(given, bytes):
        if reads != "image":
            raise InputError(f"'{name}' is for {model.task.name} and reads no images: send JSON with 'inputs'.")
        given = base64.b64encode(given).decode()
    if model.task.outputs.kind != "scores" or isinstance(given, Asked):
        return await found(model, given, body.parameters, service, state)
    several = [given] if isinstance(given, str) else given
    ranked = await labels(
        model, list(map(_image, several)) if reads == "image" else several, body.parameters, service, state
    )
    return JSONResponse(ranked[0] if reads == "image" and isinstance(given, str) else ranked)


def _image(content: str) -> str:
    """Return an image in base64 as the URL that the server reads; its type is found out by its header."""
    return content if content.startswith("data:") else f"data:image/*;base64,{content}"


async def labels(
    model: ServedModel,
    inputs: Sequence[str],
    parameters: Parameters | None,
    service: Service,
    state: MutableMapping[str, Any],
) -> list[list[dict[str, Any]]]:
    """Return the labels of every text or image, the likeliest first; arguments and errors as :func:`entities`."""
    given = parameters or Parameters()  # type: ignore[call-arg]
    given.check(model.task.outputs.kind)
    answers, _ = await service.ask(model, inputs, state)
    return [ranked_labels(model, row, raw=given.function_to_apply == "none")[: given.top_k] for row in answers]


async def found(
    model: ServedModel,
    inputs: str | Sequence[str] | Asked,
    parameters: Parameters | None,
    service: Service,
    state: MutableMapping[str, Any],
) -> JSONResponse:
    """Return the entities in a text or in several, or the answer to a question; arguments and errors as :func:`entities`."""
    if parameters is not None:
        parameters.check(model.task.outputs.kind)
    if isinstance(inputs, Asked):
        return JSONResponse(await answers(model, inputs, parameters, service, state))
    if model.task.outputs.kind == "spans":
        raise InputError(f"'{model.id}' answers questions: give 'inputs' as {{\"question\": …, \"context\": …}}.")
    several = await entities(model, [inputs] if isinstance(inputs, str) else inputs, parameters, service, state)
    return JSONResponse(several[0] if isinstance(inputs, str) else several)


async def answers(
    model: ServedModel, asked: Asked, parameters: Parameters | None, service: Service, state: MutableMapping[str, Any]
) -> dict[str, Any] | list[dict[str, Any]]:
    """Return the answer to a question, or a list of the likeliest if the parameters say how many.

    Raises:
        ConfigError: the model answers no questions.
        InputError: question or context cannot be used.
        ServingError: see :meth:`Service.ask_rows`.
    """
    if model.task.outputs.kind != "spans":
        raise ConfigError(
            f"'{model.id}' is for {model.task.name} and answers no questions: use POST {model.task.outputs.route}."
        )
    given = parameters or Parameters()  # type: ignore[call-arg]
    rows, scores, _ = await service.ask_rows(model, [TextPair(asked.question, asked.context)], state)
    may_lack = given.handle_impossible_answer
    spans = to_answers(
        scores, [row.arrays for row in rows], asked.context, model.runner.bundle, top=given.top_k or 1,
        longest=given.max_answer_len or LONGEST_ANSWER,
        no_answer=bool(model.no_answer if may_lack is None else may_lack),
    )  # fmt: skip
    plain = [{"answer": one.text, "score": one.score, "start": one.start, "end": one.end} for one in spans]
    return plain if given.top_k is not None else plain[0]


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
