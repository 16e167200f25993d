"""The outermost middleware: gives every request an id, writes one log line for it, counts it and answers failures.

A log line is JSON and holds nothing of what the client sent, except the request id.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.middleware.auth import OPEN_PATHS
from rmlora_deploy.serving.middleware.messages import Headers, read_headers, send_error

__all__ = ["AccessLog"]

_FAILED = "The server failed on this request; its log gives the reason under the request id."
_STOPPED = "The server stopped before it answered this request: send it to another one."
_CLIENT_GONE = 499
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger("rmlora.serve")


class AccessLog:
    """Logs and counts every request; an exception becomes a 500 and a cancellation a 503.

    Puts into the request's state: ``request_id``; ``started`` (``time.monotonic``); ``task``, which is canceled when the
    client goes away; and ``body_pending``, which is True until the whole body has been read. A response that starts
    earlier closes the connection, since nobody will read the rest.

    Args:
        app: answers the requests.
        metrics: counts them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, method, headers = time.monotonic(), scope["method"], read_headers(scope)
        scope = _adapt_scope(scope, headers)
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        state["started"], state["task"] = started, asyncio.current_task()
        state["request_id"] = given if _ID.fullmatch(given) else os.urandom(16).hex()
        state["body_pending"] = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", state["request_id"].encode()),
                    (b"x-content-type-options", b"nosniff"),
                    *([(b"connection", b"close")] if state["body_pending"] else []),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - the client learns that something failed, the log learns what
            _log.error("request %s failed", state["request_id"], exc_info=error)
            if not status:
                await send_error(send_with_id, scope["path"], 500, _FAILED)
        except asyncio.CancelledError:  # the client is gone, or the server's time to stop is over
            if not status and not state.get("client_gone"):
                await send_error(send_with_id, scope["path"], 503, _STOPPED)
        finally:
            self._record(scope, method, status or _CLIENT_GONE, time.monotonic() - started)

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        state = scope["state"]
        route = getattr(scope.get("route"), "path", None) or ("static" if scope["path"] in OPEN_PATHS else "none")
        self._metrics.request(route, status, seconds, asked="rows" in state)
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": state["request_id"],
            "method": method,
            "route": route,
            "status": status,
            "ms": round(1e3 * seconds, 2),
            **{name: state[name] for name in ("model", "rows", "tokens") if name in state},
        }
        _log.info(json.dumps(record))


def _adapt_scope(scope: Scope, headers: Headers) -> Scope:
    """Return the scope as the routes expect it.

    A HEAD request becomes a GET (uvicorn leaves out the content), and a request under ``/v2/`` without a content type
    becomes JSON, because KServe's clients send none. Web pages may not leave it out: browsers send their origin along.
    """
    if scope["method"] == "HEAD":
        scope = {**scope, "method": "GET"}
    if b"content-type" not in headers and b"origin" not in headers and scope["path"].startswith("/v2/"):
        scope = {**scope, "headers": [*scope["headers"], (b"content-type", b"application/json")]}
    return scope
