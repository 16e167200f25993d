"""The application: routes, what stands before them, and how errors leave."""

from __future__ import annotations

import asyncio
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
from rmlora_deploy.serving.errors import BusyError, status_of
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.middleware.stack import middleware_stack
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.routes import health, openai, vllm
from rmlora_deploy.serving.routes import open_inference as inference
from rmlora_deploy.serving.schemas import error_body
from rmlora_deploy.serving.service import Service

__all__ = ["create_app"]

_STATIC = Path(__file__).parent / "static"
_SHOWN = 40
"""Characters of a field's name that an error repeats."""
_PAGE = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "Referrer-Policy": "no-referrer",
}


def create_app(registry: Registry, metrics: Metrics) -> FastAPI:
    """Return an ASGI application that serves ``registry``; when it shuts down, what was accepted is still answered."""
    service = Service(registry, metrics)
    metrics.watch(registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(registry.close, service.stop())

    app = FastAPI(
        title="rmlora-deploy", version=__version__, lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None,
        middleware=middleware_stack(registry.settings, metrics),
    )  # fmt: skip
    app.state.service = service
    for module in (health, openai, vllm, inference):
        app.include_router(module.router)
    add_docs(app)
    app.mount("/static", _PageFiles(directory=_STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html", headers=_PAGE)

    app.add_exception_handler(RMLoRAError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain)
    return app


class _PageFiles(StaticFiles):
    """The page's files; browsers ask each time whether they are current, so none mixes those of two releases."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _reply(request: Request, status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(request.url.path, status, message), status, headers=headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RMLoRAError)  # noqa: S101 - registered for these
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else None
    return _reply(request, status_of(error), str(error), headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong with a body, without repeating what was in it."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    if inference.BINARY_HEADER in request.headers:
        return _reply(request, 400, inference.NO_BINARY)
    kind = request.headers.get("content-type", "")
    if first["loc"] == ("body",) and "json" not in kind:
        return _reply(
            request, 415, "The body must be JSON and say so: send the header  Content-Type: application/json."
        )
    if first["type"] == "json_invalid":
        return _reply(request, 400, "The body is not valid JSON.")
    place = ".".join(str(part)[:_SHOWN] for part in first["loc"][1:] if isinstance(part, int) or part.isidentifier())
    return _reply(request, 400, f"{place}: {first['msg']}" if place else str(first["msg"]))


async def _plain(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    return _reply(request, error.status_code, str(error.detail), dict(error.headers or {}))
