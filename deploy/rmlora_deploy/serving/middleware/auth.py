"""The API key: refuses requests that do not send it."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from rmlora_deploy.serving.middleware.messages import read_headers, send_error

__all__ = ["OPEN_PATHS", "KeyCheck", "is_open"]

OPEN_PATHS = (
    "/", "/health", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/favicon.ico", "/openapi.json",
)  # fmt: skip
"""Answered without a key: health checks, the API schema, and the page, which asks for the key itself."""
_OPEN_PREFIXES = ("/static/", "/docs")


def is_open(path: str) -> bool:
    """Return True if everybody may ask for ``path``."""
    return path in OPEN_PATHS or path.startswith(_OPEN_PREFIXES)


class KeyCheck:
    """Answers 401 unless a request sends ``key`` as a bearer token or its path is open.

    Args:
        app: answers the requests that are let in.
        key: the API key; white space around it does not count, such as the end of the line that a mounted secret ends with.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.strip().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allows(scope):
            message = "This server needs a key: send it as  Authorization: Bearer KEY."
            await send_error(send, scope["path"], 401, message, (b"www-authenticate", b"Bearer"))
            return
        await self._app(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if is_open(scope["path"]):
            return True
        scheme, _, given = read_headers(scope).get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), self._key) and scheme.lower() == b"bearer"
