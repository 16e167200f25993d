"""An HTTP client that takes as little as possible of the machine it measures: persistent connections, no features."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

__all__ = ["Reply", "Wire"]


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Wire:
    """Sends requests to one server; every request in progress has a connection of its own.

    Args:
        url: of the server, without a path at its end.
        headers: sent with every request.

    Raises:
        ValueError: it is not the address of a server.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is not an address like http://127.0.0.1:8000")
        self._host, self._tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path
        lines = [
            f"host: {parts.netloc.rpartition('@')[2]}",
            *(f"{key}: {value}" for key, value in (headers or {}).items()),
        ]
        self._head = "".join(f"{line}\r\n" for line in lines)
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in list(self._all):
            connection.close()

    @property
    def in_progress(self) -> int:
        """Requests that wait for their response."""
        return len(self._all) - len(self._idle)

    async def request(self, method: str, path: str, body: bytes | None = None, *, timeout: float = 30.0) -> Reply:
        """Send a request and return the response.

        Args:
            method: of the request.
            path: after the server's address.
            body: JSON, if there is any.
            timeout: seconds until the whole response must have arrived.

        Raises:
            OSError: the server cannot be reached, or closed the connection.
            TimeoutError: the response took too long.
            ValueError: the response is not HTTP.
        """
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}"
        if body is not None:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        sent = f"{head}\r\n".encode("latin-1") + (body or b"")
        async with asyncio.timeout(timeout):
            while True:
                connection, reused = await self._connection()
                try:
                    reply = await connection.exchange(sent)
                except ConnectionError:
                    if not reused or connection.received:
                        raise
                    continue  # the server had closed it meanwhile
                except BaseException:
                    connection.close()
                    raise
                if connection.is_open:
                    self._idle.append(connection)
                return reply

    async def _connection(self) -> tuple[_Connection, bool]:
        """Return a connection, and whether it has been used before."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection, True
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(
            lambda: _Connection(self._all), self._host, self._port, ssl=self._tls or None
        )
        return made, False


class _Connection(asyncio.Protocol):
    """A connection, for one request at a time.

    Args:
        connections: contains it as long as it is open.
    """

    def __init__(self, connections: set[_Connection]) -> None:
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Reply] | None = None
        self._parser = HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body = b""
        self.received = False
        """True if any of the response has arrived."""
        self.is_open = True

    async def exchange(self, sent: bytes) -> Reply:
        """Send a request and return the response; errors as :meth:`Wire.request`."""
        assert self._transport is not None  # noqa: S101 - it is connected
        self._waiting = asyncio.get_running_loop().create_future()
        self._headers, self._body, self.received = {}, b"", False
        self._transport.write(sent)
        return await self._waiting

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._connections.discard(self)
        self._fail(exc if isinstance(exc, OSError) else ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self.received = True
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(ValueError(f"the response is not HTTP ({error})"))
            self.close()

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    # -- parser ------------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Store a part of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Return the response."""
        if not self._parser.should_keep_alive():
            self.is_open = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(Reply(self._parser.get_status_code(), self._headers, self._body))
        if not self.is_open and self._transport is not None:
            self._transport.close()
