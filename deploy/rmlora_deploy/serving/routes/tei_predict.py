"""text-embeddings-inference's ``/predict``: every label with its score, for texts and pairs of texts.

Models for entities and for answers to questions answer here too, in the form of Hugging Face's Inference API.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from rmlora.errors import ConfigError, InputError
from rmlora.text_pair import TextPair
from rmlora_deploy.serving.json_bodies import JsonRoute
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.pair_scores import chosen_model
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.huggingface import ONE_QUESTION, Asked, Parameters, found
from rmlora_deploy.serving.routes.lists import FIRST_ERROR, Texts
from rmlora_deploy.serving.routes.ranked_labels import ranked_labels
from rmlora_deploy.serving.schemas import declared

__all__ = ["router"]

router = APIRouter(
    route_class=JsonRoute,
    tags=["text-embeddings-inference"],
    responses=declared(400, 401, 404, 408, 413, 415, 429, 503),
)


class PredictRequest(BaseModel):
    """What to classify."""

    model: str | None = Field(None, description="May be left out if the server has a single model.", examples=["nli"])
    inputs: Annotated[str | Annotated[list[str | Texts], FIRST_ERROR] | Asked, ONE_QUESTION] = Field(
        description="A text; a list of one or two texts, which is a text or a pair; a list of such lists; or a question with its "
        "context.",
        examples=["See you at eight", ["A man plays.", "It rains."], [["A man plays.", "It rains."]]],
    )
    raw_scores: bool = Field(False, description="Of a classifier: return the model's outputs as they are.")
    parameters: Parameters | None = Field(None, description="Of a model for entities or answers: how they are found.")


@router.post("/predict", response_model=None, responses=declared(504))
async def predict(body: PredictRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Return every label with its score, the best first; of a list of lists, a list for each.

    A model for token-classification answers with entities instead; a list is then one of texts. A model for
    question-answering is given a question with its context.
    """
    model = chosen_model(service, body.model)
    if model.task.outputs.kind in ("tokens", "spans") or isinstance(body.inputs, Asked):
        return await found(model, _texts(model, body), body.parameters, service, state)
    if body.parameters is not None and body.parameters.model_fields_set:  # Hugging Face's client sends an empty object
        raise ConfigError(f"'{model.id}' is for {model.task.name}, and 'parameters' are for entities: leave them out.")
    if not model.task.outputs.has_labels or model.task.inputs.modality != "text":
        raise ConfigError(f"'{model.id}' is for {model.task.name}: use POST {model.task.outputs.route}.")
    batch = not isinstance(body.inputs, str) and any(isinstance(item, list) for item in body.inputs)
    inputs = [_one(item) for item in body.inputs] if batch else [_one(body.inputs)]
    answers, _ = await service.ask(model, inputs, state)
    ranked = [ranked_labels(model, logits, raw=body.raw_scores) for logits in answers]
    return JSONResponse(ranked if batch else ranked[0])


def _texts(model: ServedModel, body: PredictRequest) -> str | list[str] | Asked:
    """Return a question, or the texts to find entities in: one, a list of them, or a list of lists of one.

    Raises:
        ConfigError: scores are asked for.
        InputError: a list has more than one text.
    """
    if body.raw_scores:
        raise ConfigError(f"'{model.id}' gives parts of a text, and has no 'raw_scores': leave it out.")
    if isinstance(body.inputs, (str, Asked)):
        return body.inputs
    given = body.inputs
    wrong = next((number for number, item in enumerate(given, 1) if not isinstance(item, str) and len(item) != 1), None)
    if wrong is not None:
        raise InputError(f"Input {wrong} is a list of {len(given[wrong - 1])}: '{model.id}' reads single texts.")
    return [item if isinstance(item, str) else item[0] for item in given]


def _one(given: str | list[Any]) -> str | TextPair:
    """Return a text or a pair.

    Raises:
        InputError: it is a list of none or of more than two texts.
    """
    if isinstance(given, str):
        return given
    if len(given) not in (1, 2):
        raise InputError(
            f"A list of {len(given)} texts is no input: give one text, two as a pair, or a list of such lists."
        )
    return given[0] if len(given) == 1 else TextPair(*given)
