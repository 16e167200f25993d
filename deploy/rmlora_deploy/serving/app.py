"""The ASGI application: routes, middleware, and how errors become responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from rmlora._version import __version__
from rmlora.errors import RMLoRAError
from rmlora_deploy.serving.api_docs import add_docs
from rmlora_deploy.serving.errors import status_of
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.middleware.media_type import BINARY_HEADER
from rmlora_deploy.serving.middleware.stack import middleware_stack
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.routes import (
    health,
    huggingface,
    open_inference,
    openai,
    pair_scoring,
    rerank,
    tei_embed,
    tei_predict,
    vllm,
)
from rmlora_deploy.serving.schemas import error_body
from rmlora_deploy.serving.service import Service

__all__ = ["create_app"]

_log = logging.getLogger("rmlora.serve")
_STATIC = Path(__file__).parent / "static"
_MAX_FIELD_NAME = 40
"""Characters of a field's name that an error repeats."""
_TYPES = {"bool", "float", "int", "str"}
"""Members of unions, which stand in the place of an error as fields do."""
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "Referrer-Policy": "no-referrer",
}


def create_app(registry: Registry, metrics: Metrics) -> FastAPI:
    """Return an ASGI application that serves ``registry``; on shutdown it still answers what it has accepted."""
    service = Service(registry, metrics)
    metrics.watch(registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(registry.close, service.stop())
        service.close()

    app = FastAPI(
        title="rmlora-deploy", version=__version__, lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None,
        middleware=middleware_stack(registry.settings, metrics, registry),
    )  # fmt: skip
    app.state.service = service
    for module in (health, openai, vllm, tei_predict, tei_embed, huggingface, rerank, pair_scoring, open_inference):
        app.include_router(module.router)
    add_docs(app)
    app.mount("/static", _PageFiles(directory=_STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html", headers=_PAGE_HEADERS)

    app.add_exception_handler(RMLoRAError, _answer_own_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid_body)
    app.add_exception_handler(HTTPException, _answer_http_error)
    return app


class _PageFiles(StaticFiles):
    """The page's files. Browsers check each time whether they are current, so that they never mix two releases."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _reply(request: Request, status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(request.url.path, status, message), status, headers=headers)


async def _answer_own_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RMLoRAError)  # noqa: S101 - the handler is registered for this type
    if status_of(error) == 500:  # not about the request, and the message may name files of the server
        _log.error("%s", error)
        raise error
    wait = getattr(error, "retry_after", None)
    headers = {"Retry-After": str(wait)} if wait is not None else None
    return _reply(request, status_of(error), str(error), headers)


async def _answer_invalid_body(request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong with a body, without repeating its content."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = max(error.errors(), key=lambda found: len(found["loc"]))  # of a union, the member that fits best
    if BINARY_HEADER in request.headers:
        return _reply(request, 400, open_inference.NO_BINARY)
    if first["type"] == "json_invalid":
        return _reply(request, 400, "The body is not valid JSON.")
    if first["type"] == "missing" and first["loc"] == ("body",):
        return _reply(request, 400, "The request has no body: send JSON.")
    parts = [
        part
        for part in first["loc"][1:]
        if isinstance(part, int) or (part.isidentifier() and part.islower() and part not in _TYPES)
    ]
    field = ".".join(str(part)[:_MAX_FIELD_NAME] for part in parts)
    return _reply(request, 400, f"{field}: {first['msg']}" if field else str(first["msg"]))


async def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    return _reply(request, error.status_code, str(error.detail), dict(error.headers or {}))
