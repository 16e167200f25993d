"""HTTP connections with limits that uvicorn lacks: on the request's head, and on the time a client takes to read.

A request whose client goes away is canceled.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection", "connection_class"]

_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line and headers together."""
_HEAD_SECONDS = 10.0
"""Maximum time from a request's first byte to the end of its headers, and from connecting to the first byte."""


def connection_class(write_timeout: float) -> type[Connection]:
    """Return the class of connections whose clients must read what they are sent within ``write_timeout`` seconds."""
    return type("Connection", (Connection,), {"write_timeout": write_timeout})


class Connection(HttpToolsProtocol):
    """A connection that closes if a request's head is too large or too slow, or if the client does not read."""

    write_timeout = 30.0
    _unread_timer: asyncio.TimerHandle | None = None
    _within_head = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)
        if self.cycle is not None and self.cycle.disconnected:
            self._cancel_request()

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

    def _cancel_request(self) -> None:
        """Stop the work for a client that is gone."""
        state = self.cycle.scope["state"]
        task = state.get("task")
        if task is not None:
            state["client_gone"] = True
            task.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        if self.flow is not None:
            super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if (
            self.transport.get_write_buffer_size()
        ):  # too little to pause writing, but it keeps the connection from closing
            self.loop.call_later(self.write_timeout, self._abort_if_unread, self.cycle)

    def _abort_if_unread(self, cycle: object) -> None:
        """Close the connection if the client has asked for nothing since ``cycle`` and not read its response."""
        if self.cycle is cycle and self.transport.get_write_buffer_size():
            self.transport.abort()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
