"""What stands before every route: request ids, the log, the key, and limits on the body (plain ASGI, no buffering).

One line of JSON is logged for each request, with nothing of its content.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.schemas import error_body
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["Middleware"]

_OPEN = ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/favicon.ico", "/openapi.json")
_OPEN_BELOW = ("/static/", "/docs")
"""Answered without a key: what a load balancer asks, how the server is used, and the page, which asks for the key itself."""

_DIGITS = 15
"""Of a length that can be meant."""
_FAILED = "The server failed on this request; its log says why under the request's id."

_HELD = 32
"""Bodies of the largest size that may be held at the same time, in bytes of all together."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger("rmlora.serve")


class Middleware:
    """Middleware around the application.

    Args:
        app: what answers.
        settings: of the server.
        metrics: told about every request.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._key = settings.api_key.encode() if settings.api_key else None
        self._held = 0
        """Bytes of bodies that are here and not answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, method = time.monotonic(), scope["method"]
        if scope["method"] == "HEAD":  # as GET; the server leaves the content out of the answer
            scope = {**scope, "method": "GET"}
        headers = {name.lower(): value for name, value in scope["headers"]}
        if b"content-type" not in headers and scope["path"].startswith("/v2/"):  # KServe's clients leave it out
            scope = {**scope, "headers": [*scope["headers"], (b"content-type", b"application/json")]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = given if _ID.fullmatch(given) else uuid.uuid4().hex
        status = 0
        body = _Body(receive, self._settings, expected=_has_body(headers), room=self._room)

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", state["request_id"].encode()),
                    (b"x-content-type-options", b"nosniff"),
                    *body.closing,
                ]
            await send(message)

        try:
            refusal = self._refusal(scope["path"], headers)
            if refusal is not None:
                await _answer(answered, scope["path"], *refusal)
            else:
                await self._app(scope, body.receive, answered)
        except Exception as error:  # noqa: BLE001 - clients learn that something failed, and the log what
            _log.error("request %s failed", state["request_id"], exc_info=error)
            if not status:
                await _answer(answered, scope["path"], 500, _FAILED)
        except asyncio.CancelledError:  # the time to stop is over
            if not status:
                await _answer(
                    answered, scope["path"], 503, "The server stopped before this was answered: ask another one."
                )
        finally:
            self._held -= body.bytes
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", None) or ("static" if scope["path"] in _OPEN else "none")
            self._metrics.request(route, status or 499, seconds, asked="rows" in state)
            record = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": state["request_id"],
                "method": method,
                "route": route,
                "status": status or 499,  # the client went away
                "ms": round(1e3 * seconds, 2),
                **{name: state[name] for name in ("model", "rows", "tokens") if name in state},
            }
            _log.info(json.dumps(record))

    def _room(self, size: int) -> bool:
        """Take room for ``size`` more bytes of a body, and return whether there was any."""
        self._held += size
        return self._held <= _HELD * self._settings.max_body

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Return status and reason where a request is not let in."""
        if self._key is not None and path not in _OPEN and not path.startswith(_OPEN_BELOW):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(given.strip(), self._key) or scheme.lower() != b"bearer":
                return 401, "This server needs a key: send it as  Authorization: Bearer KEY."
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > _DIGITS or int(length) > self._settings.max_body:
            return 413, _too_large(self._settings.max_body)
        return None


class _Body:
    """Counts the bytes and the time of a body on its way in.

    Args:
        receive: gives its parts.
        settings: of the server.
        expected: whether there is one.
        room: called with the bytes of every part; false where the server has no room for them.
    """

    def __init__(
        self, receive: Receive, settings: ServeSettings, *, expected: bool, room: Callable[[int], bool]
    ) -> None:
        self._receive, self._settings, self._expected, self._room = receive, settings, expected, room
        self.bytes = 0
        self._end: float | None = time.monotonic() + settings.body_timeout
        """When the body must be here; None once it is."""

    @property
    def closing(self) -> list[tuple[bytes, bytes]]:
        """What an answer says that is given before the body is here: nobody will read the rest."""
        return [(b"connection", b"close")] if self._expected and self._end is not None else []

    async def receive(self) -> Message:
        if self._end is None:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._end - time.monotonic()))
        except TimeoutError:
            raise HTTPException(408, f"The body did not arrive within {self._settings.body_timeout:g} s.") from None
        part = len(message.get("body", b""))
        self.bytes += part
        if not self._room(part):
            raise HTTPException(
                429, "Too many large requests are under way: try again in 1 s.", headers={"Retry-After": "1"}
            )
        if self.bytes > self._settings.max_body:
            raise HTTPException(413, _too_large(self._settings.max_body))
        if not message.get("more_body", False):
            self._end = None
        return message


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _too_large(limit: int) -> str:
    return f"The body is larger than the {limit} bytes that this server takes: send fewer inputs at once."


async def _answer(send: Callable[[Message], Awaitable[None]], path: str, status: int, message: str) -> None:
    body = json.dumps(error_body(path, status, message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
