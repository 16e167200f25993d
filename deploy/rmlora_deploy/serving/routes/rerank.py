"""``/rerank`` as Cohere, Jina and vLLM have it (``documents``), and as text-embeddings-inference has it (``texts``)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from rmlora.errors import InputError
from rmlora.text_pair import TextPair
from rmlora_deploy.serving.json_bodies import JsonRoute
from rmlora_deploy.serving.pair_scores import chosen_model, score_pairs
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.lists import FIRST_ERROR, Texts
from rmlora_deploy.serving.schemas import declared

__all__ = ["router"]

router = APIRouter(
    route_class=JsonRoute, tags=["Pairs of texts"], responses=declared(400, 401, 404, 408, 413, 415, 429, 503)
)


class Document(BaseModel):
    """A document with its text."""

    text: str


class RerankRequest(BaseModel):
    """A query, and what to put in order for it: ``documents`` (Cohere, Jina, vLLM) or ``texts`` (text-embeddings-inference)."""

    model: str | None = Field(
        None, description="A model that reads pairs; may be left out if the server has a single one.", examples=["nli"]
    )
    query: str = Field(examples=["Who plays music ?"])
    documents: Annotated[list[str | Document], FIRST_ERROR] | None = Field(
        None, examples=[["A man plays a guitar.", "It rains."]]
    )
    top_n: int | None = Field(None, ge=1, strict=True, description="Return so many documents at most.")
    return_documents: bool = Field(True, description="Return the documents' texts too.")
    texts: Texts | None = Field(None, description="In place of `documents`, for text-embeddings-inference's answer.")
    return_text: bool = Field(False, description="With `texts`: return them too.")
    raw_scores: bool = Field(False, description="Return the model's outputs as they are.")
    label: str | None = Field(
        None, description="Label whose probability is the score, for a model with several and none that is clearly it."
    )


@router.post("/rerank", response_model=None, responses=declared(504))
@router.post("/v1/rerank", response_model=None, responses=declared(504))
@router.post("/v2/rerank", response_model=None, responses=declared(504))
async def rerank(body: RerankRequest, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Score documents for a query and return them in order, the best first."""
    if (body.documents is None) == (body.texts is None):
        raise InputError("Give what to rerank as 'documents', or as 'texts' (text-embeddings-inference).")
    model = chosen_model(service, body.model)
    texts = [item if isinstance(item, str) else item.text for item in body.documents or body.texts or ()]
    service.reader.check_count(len(texts))
    pairs = [TextPair(body.query, text) for text in texts]
    scores, tokens = await score_pairs(service, model, pairs, state, label=body.label, raw=body.raw_scores)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    if body.documents is None:
        return JSONResponse(_as_tei(order, scores, texts if body.return_text else None))
    return JSONResponse(
        {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": model.id,
            "results": [
                {
                    "index": index,
                    "relevance_score": scores[index],
                    **({"document": {"text": texts[index]}} if body.return_documents else {}),
                }
                for index in order
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _as_tei(order: Sequence[int], scores: Sequence[float], texts: Sequence[str] | None) -> list[dict[str, Any]]:
    return [
        {"index": index, "score": scores[index], **({"text": texts[index]} if texts is not None else {})}
        for index in order
    ]
