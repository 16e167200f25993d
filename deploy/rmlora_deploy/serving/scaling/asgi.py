"""An HTTP request as one value, which can be sent to another process and answered there by an ASGI application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Call", "Reply", "answer_call", "read_call", "send_reply"]

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Call:
    """A request with its whole body."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class Reply:
    """A response with its whole body."""

    status: int
    headers: Headers
    body: bytes


async def read_call(scope: Scope, receive: Receive) -> Call:
    """Read a request to its end."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    return Call(scope["method"], scope["path"], scope.get("query_string", b""), headers, b"".join(parts))


_SET_HERE = (b"content-length", b"x-request-id", b"x-content-type-options")
"""Headers that are set here, or by the middleware around whoever forwards the response."""


async def send_reply(reply: Reply, send: Send) -> None:
    """Send a response that came from another process."""
    headers = [(name, value) for name, value in reply.headers if name.lower() not in _SET_HERE]
    headers.append((b"content-length", str(len(reply.body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


async def answer_call(app: ASGIApp, call: Call) -> Reply:
    """Return the response of ``app``, run in this process."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": call.method,
        "path": call.path,
        "raw_path": call.path.encode("latin-1", "replace"),
        "root_path": "",
        "query_string": call.query,
        "headers": call.headers,
        "client": None,
        "server": None,
        "state": {},
    }
    body: list[Message] = [{"type": "http.request", "body": call.body, "more_body": False}]
    status, headers, parts = 500, Headers(), list[bytes]()

    async def receive() -> Message:
        if not body:
            await asyncio.Event().wait()  # wait for ever: if the caller goes away, this task is canceled
        return body.pop()

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", [])]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return Reply(status, headers, b"".join(parts))
