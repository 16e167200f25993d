"""HTTP connections with limits on the size and duration of the request head, neither of which uvicorn limits."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection"]

_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line and headers together."""
_HEAD_SECONDS = 10.0
"""Maximum time from a request's first byte to the end of its headers, and from connecting to the first byte."""


class Connection(HttpToolsProtocol):
    """A connection that closes if a request line and its headers are too large or too slow."""

    _within_head = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_before = self._within_head
        super().data_received(data)
        if not self._within_head:
            return
        if began_before:  # a head that starts in this piece may follow a body in the same piece, so it is not counted
            self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES:
            self._stop_timer()
            self.send_400_response("The request line and headers are too large.")
        elif self._timer is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        self._within_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._within_head = False
        self._stop_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
