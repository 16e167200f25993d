"""HTTP connections that must say in time, and in few words, what they want (uvicorn bounds neither)."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection"]

_HEAD_BYTES = 64 * 1024
"""Of request line and headers together."""
_HEAD_SECONDS = 10.0
"""From a request's first byte to the end of its headers, and from connecting to the first byte."""


class Connection(HttpToolsProtocol):
    """A connection that is closed where a request line and its headers are too large or too slow."""

    _within_head = False
    _head_bytes = 0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_before = self._within_head
        super().data_received(data)
        if not self._within_head:
            return
        if began_before:  # what starts within this piece may follow a body in it
            self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES:
            self._arrived()
            self.send_400_response("The request line and headers are too large.")
        elif self._patience is None:
            self._wait()

    def on_message_begin(self) -> None:
        self._within_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._within_head = False
        self._arrived()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._patience = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _arrived(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
