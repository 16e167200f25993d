"""The HTTP client of a load test: persistent connections to one server, as many as there are requests in progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from rmlora.errors import InputError

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
        InputError: it is not the address of a server.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        if not _is_address(url):
            likely = f"http://{url}" if "://" not in url and _is_address(f"http://{url}") else "http://127.0.0.1:8000"
            raise InputError(f"'{url}' is not an address: write {likely}.")
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


def _is_address(url: str) -> bool:
    """Return True if ``url`` is that of a server: http or https, a host, and a valid port if there is one."""
    try:
        parts = urlsplit(url)
        valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return valid and parts.scheme in ("http", "https") and bool(parts.hostname) and not set(url) & set(" \t\n")
