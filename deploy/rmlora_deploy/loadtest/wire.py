"""The HTTP client of a load test: persistent connections to one server, as many as there are requests in progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

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
        self._url, self._headers = url.rstrip("/"), dict(headers or {})
        self._session: aiohttp.ClientSession | None = None
        self.in_progress = 0
        """Requests that wait for their response."""

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

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
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        headers = {} if body is None else {"content-type": "application/json"}
        self.in_progress += 1
        try:
            async with self._session.request(
                method, self._url + path, data=body, headers=headers, timeout=aiohttp.ClientTimeout(timeout)
            ) as response:
                names = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status, names, await response.read())
        except aiohttp.ClientResponseError as error:
            raise ValueError(f"the response is not HTTP ({error.message})") from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
            raise ConnectionResetError("the server closed the connection") from error
        finally:
            self.in_progress -= 1
