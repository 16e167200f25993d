"""The OpenAPI schema, and Swagger UI to read it; its files come from an installed package, so it needs no network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from rmlora.errors import require

__all__ = ["add_docs"]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>rmlora-deploy: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/files/swagger-ui.css">
</head>
<body>
<div id="swagger"></div>
<noscript>This page needs JavaScript; the schema itself is at <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/files/swagger-ui-bundle.js"></script>
<script src="/static/docs.js"></script>
</body>
</html>
"""
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
}
"""Inline styles are allowed because Swagger UI sets them."""
_LOADING = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""Routes that a server whose bundles are all merged does not offer."""
_DESCRIPTION = """Many low-rank adapters on one ONNX graph.

`model` names a bundle or one of its adapters; `GET /v1/models` lists them. Every response has the header `x-request-id`,
which also appears in the server's log; a request may bring its own. A server started with `--api-key` requires
`Authorization: Bearer KEY`.
"""


def add_docs(app: FastAPI) -> None:
    """Serve ``/openapi.json`` and ``/docs``.

    Raises:
        DependencyError: the package with Swagger UI's files is not installed.
    """
    require("fastapi_offline", "serve")
    found = find_spec("fastapi_offline")
    assert found is not None and found.submodule_search_locations  # noqa: S101 - it is a package
    app.mount("/docs/files", StaticFiles(directory=Path(found.submodule_search_locations[0]) / "static"))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers=_HEADERS)

    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]


def _schema(app: FastAPI) -> dict[str, Any]:
    """Return the schema without FastAPI's own 422, because this server answers invalid bodies with 400."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                for status, response in operation["responses"].items():
                    if not status.startswith("2"):  # errors are JSON even if the answer is plain text
                        response["content"] = {"application/json": next(iter(response["content"].values()))}
        components = schema["components"]
        if app.state.service.registry.merged_only:
            for path in _LOADING:
                schema["paths"].pop(path)
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{}, {"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
