"""Limits on request bodies: their size, the time they take to arrive, and the memory that all of them take together.

Bodies are counted as they pass and never buffered here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rmlora_deploy.serving.middleware.messages import read_headers, send_error
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["BodyLimits"]

_MAX_DIGITS = 15
"""Digits of a plausible content length."""
_HELD_BODIES = 8
"""All bodies in memory may together be as large as this many of the largest size."""
_LARGE = 1 << 20
"""Bytes after which the rest of a body is read at a limited rate."""
_BYTES_PER_SECOND = 16 << 20
"""Of all large bodies together, for each core: reading faster would take the time that other requests need."""


class BodyLimits:
    """Refuses bodies that are too large (413), too slow (408) or too many at once (429).

    A content length that is too large is refused before the body is read. The other errors are raised from ``receive``
    as ``HTTPException``, for the application to answer.

    Args:
        app: reads the body and answers.
        settings: ``max_body`` and ``body_timeout`` are used.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._pace = _Pace(_BYTES_PER_SECOND * (os.cpu_count() or 1))
        self._held = 0
        """Bytes of all bodies that have arrived and are not answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = read_headers(scope).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > _MAX_DIGITS or int(length) > self._settings.max_body:
            await send_error(send, scope["path"], 413, _too_large(self._settings.max_body))
            return
        body = _Body(scope, receive, self._settings, reserve=self._reserve, pace=self._pace)
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._held -= body.bytes

    def _reserve(self, size: int) -> bool:
        """Count ``size`` more bytes as held, and return True if the server has room for them."""
        self._held += size
        return self._held <= _HELD_BODIES * self._settings.max_body


class _Body:
    """Counts the bytes and the time of one body as it arrives.

    Args:
        scope: of the request; ``state["body_pending"]`` becomes False once the body is complete.
        receive: returns its parts.
        settings: of the server.
        reserve: called with the size of every part; returns False if the server has no room for it.
        pace: delays the parts of large bodies.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        settings: ServeSettings,
        *,
        reserve: Callable[[int], bool],
        pace: _Pace,
    ) -> None:
        self._state, self._receive, self._settings, self._reserve = scope["state"], receive, settings, reserve
        self._pace = pace
        self.bytes = 0
        self._deadline: float | None = time.monotonic() + settings.body_timeout
        """When the body must be complete; None once it is."""

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            HTTPException: the body is too slow or too large, or there is no room for it.
        """
        if self._deadline is None:
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"The body did not arrive within {self._settings.body_timeout:g} s.") from None
        size = len(message.get("body", b""))
        self.bytes += size
        if not self._reserve(size):
            raise HTTPException(
                429, "Too many large requests are in progress: try again in 1 s.", headers={"Retry-After": "1"}
            )
        if self.bytes > self._settings.max_body:
            raise HTTPException(413, _too_large(self._settings.max_body))
        if self.bytes > _LARGE:
            self._deadline += await self._pace.wait(size)
        if not message.get("more_body", False):
            self._deadline = None
            self._state["body_pending"] = False
        return message


class _Pace:
    """Limits a rate by making everybody wait who takes part in it.

    Args:
        rate: bytes per second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free = 0.0
        """When the next bytes may be read."""

    async def wait(self, size: int) -> float:
        """Wait until ``size`` more bytes may be read, and return the seconds that this took."""
        now = time.monotonic()
        self._free = max(now, self._free) + size / self._rate
        delay = self._free - now
        await asyncio.sleep(delay)
        return delay


def _too_large(limit: int) -> str:
    return f"The body is larger than the {limit} bytes that this server accepts: send fewer inputs at once."
