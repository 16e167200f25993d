"""Refuses requests for a model that is busy before they are parsed, so that refusing costs next to nothing."""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmlora_deploy.serving.errors import BusyError, ServingError
from rmlora_deploy.serving.middleware.messages import read_headers, send_error
from rmlora_deploy.serving.queue import RequestQueue
from rmlora_deploy.serving.registry import Registry

__all__ = ["INFERENCE_PATHS", "Shedding", "model_hint"]

INFERENCE_PATHS = (
    "/classify", "/v1/embeddings", "/embed", "/similarity", "/predict", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score",
)  # fmt: skip
"""Paths whose bodies name a model to ask."""
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/[^/]+)?/infer|/models/([^/]+)(?:/pipeline/[^/]+)?")
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
"""Finds the model in a body that has not been parsed. Inside a text the quotes would be escaped."""
_SMALL = 64 * 1024
"""Bytes of a body that is read before it is decided on: the client is recognized by it, and keeps its connection."""


class Shedding:
    """Answers 429 or 503 if the queue of the model that a request names takes no more.

    Puts into the request's state: ``ticket``, which identifies it; and ``returning``, which is True if the client was
    refused before and has come back at its time.

    Args:
        app: answers the other requests.
        registry: the models.
    """

    def __init__(self, app: ASGIApp, registry: Registry) -> None:
        self._app, self._registry = app, registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not self._is_inference(scope["path"]):
            await self._app(scope, receive, send)
            return
        length = read_headers(scope).get(b"content-length", b"")
        body: bytes | None = None
        if length.isdigit() and int(length) <= _SMALL:
            try:
                body = await _read(receive)
            except HTTPException as error:  # too slow, or too much
                await _refuse(scope, send, error.status_code, str(error.detail), dict(error.headers or {}))
                return
            receive = _replay(body, receive)
        queue = self._queue(scope["path"], body)
        if queue is not None:
            client = (scope.get("client") or ("",))[0]
            ticket = hash((scope["path"], body if body is not None else (length, client)))
            scope["state"]["ticket"] = ticket
            try:
                scope["state"]["returning"] = queue.check(ticket=ticket)
            except ServingError as error:
                wait = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else {}
                await _refuse(scope, send, error.status, str(error), wait)
                return
        await self._app(scope, receive, send)

    def _is_inference(self, path: str) -> bool:
        return path in INFERENCE_PATHS or _INFER.fullmatch(path) is not None

    def _queue(self, path: str, body: bytes | None) -> RequestQueue | None:
        """Return the queue that the request would go to; None if that is not known before it is parsed."""
        runners = self._registry.runners
        if len(runners) == 1:
            return next(iter(runners.values())).queue
        named = _INFER.fullmatch(path)
        name = named[1] or named[2] if named else model_hint(body or b"") or ""
        model = self._registry.find(name)
        return model.runner.queue if model is not None else None


def model_hint(body: bytes) -> str | None:
    """Return the model that a body seems to name, without parsing it; None if it seems to name none."""
    found = _MODEL.search(body)
    return found[1].decode(errors="replace") if found else None


async def _read(receive: Receive) -> bytes:
    """Return the whole body, or what arrived of it before the client went away."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives ``body`` first."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _refuse(scope: Scope, send: Send, status: int, message: str, headers: dict[str, str]) -> None:
    extra = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send_error(send, scope["path"], status, message, *extra)
