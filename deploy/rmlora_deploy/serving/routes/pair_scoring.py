"""vLLM's ``/score``: how well texts go together, one with one, one with many, or each with its own."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from rmlora.errors import InputError
from rmlora.text_pair import TextPair
from rmlora_deploy.serving.json_bodies import JsonRoute
from rmlora_deploy.serving.pair_scores import chosen_model, score_pairs
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.lists import Texts
from rmlora_deploy.serving.schemas import declared

__all__ = ["router"]

router = APIRouter(
    route_class=JsonRoute, tags=["Pairs of texts"], responses=declared(400, 401, 404, 408, 413, 415, 429, 503)
)


class ScoreRequest(BaseModel):
    """Texts to score: one with each of many, or as many as many."""

    model: str | None = Field(
        None, description="A model that reads pairs; may be left out if the server has a single one.", examples=["nli"]
    )
    text_1: str | Texts = Field(examples=["Who plays music ?"])
    text_2: str | Texts = Field(examples=[["A man plays a guitar.", "It rains."]])
    label: str | None = Field(
        None, description="Label whose probability is the score, for a model with several and none that is clearly it."
    )


@router.post("/score", response_model=None, responses=declared(504))
@router.post("/v1/score", response_model=None, responses=declared(504))
async def score(body: ScoreRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Score pairs of texts, in the order in which they are given."""
    model = chosen_model(service, body.model)
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    service.reader.check_count(len(second))
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InputError(
            f"text_1 has {len(first)} texts and text_2 has {len(second)}: give one text_1 for all, or as many as text_2 has."
        )
    pairs = [TextPair(*pair) for pair in zip(first, second, strict=True)]
    scores, tokens = await score_pairs(service, model, pairs, state, label=body.label)
    return JSONResponse(
        {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": model.id,
            "data": [{"index": number, "object": "score", "score": value} for number, value in enumerate(scores)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
        }
    )
