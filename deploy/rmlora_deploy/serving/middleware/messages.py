"""Reading a request's headers and answering with an error, as ASGI messages."""

from __future__ import annotations

import json

from starlette.types import Scope, Send

from rmlora_deploy.serving.schemas import error_body

__all__ = ["Headers", "read_headers", "send_error"]

Headers = dict[bytes, bytes]
"""Header name in lower case → value."""


def read_headers(scope: Scope) -> Headers:
    """Return the headers of a request; if one is repeated, the last value counts."""
    return {name.lower(): value for name, value in scope["headers"]}


async def send_error(send: Send, path: str, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
    """Answer with an error in the format of the interface that ``path`` belongs to."""
    body = json.dumps(error_body(path, status, message)).encode()
    common = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*common, *headers]})
    await send({"type": "http.response.body", "body": body})
