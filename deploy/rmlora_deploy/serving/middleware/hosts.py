"""Which names a server without a key answers to, and from which pages: browsers must not be used to reach it.

A page from anywhere can let its own name resolve to 127.0.0.1 (DNS rebinding) and then ask a server on the visitor's machine
as if it were its own. The request still carries the page's name in the header Host, which is therefore compared with a list.
A page can also send requests to other origins without reading the answers; these carry its origin in the header Origin.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from rmlora_deploy.serving.host_names import LOOPBACK_HOSTS, read_host
from rmlora_deploy.serving.middleware.auth import is_open
from rmlora_deploy.serving.middleware.messages import send_error

__all__ = ["HostCheck"]

_MAX_SHOWN = 100
"""Characters of a header that an error repeats."""


class HostCheck:
    """Answers 403 to requests for another name than those allowed, and to those of foreign pages.

    Health checks, metrics, and the files of the page and of the documentation are answered under every name.

    Args:
        app: answers the requests that are let in.
        hosts: names, or ``name:port`` for one port only.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope["path"]) and scope["path"] != "/metrics":
            message = self._refusal(scope)
            if message is not None:
                await send_error(send, scope["path"], 403, message)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        """Return why a request is refused; None if it is not."""
        hosts, origins = _headers(scope, b"host"), _headers(scope, b"origin")
        for host in hosts or [""]:
            if not self._allows(host):
                return (
                    f"This server does not answer to the name '{_shown(host)}', so that web pages cannot reach it under "
                    "names of their own: start it with --allowed-host and that name, or with --api-key."
                )
        for origin in origins:
            if not self._is_own(origin, hosts[-1]):
                return (
                    f"This server does not answer to the web page '{_shown(origin)}': start it with --allowed-host and the "
                    "page's host, or with --api-key."
                )
        return None

    def _allows(self, host: str) -> bool:
        read = read_host(host)
        return read is not None and (read[0] in self._hosts or ":".join(read) in self._hosts)

    def _is_own(self, origin: str, host: str) -> bool:
        """Return True if a page comes from this server, or from a host that the user named (a proxy in front, for example)."""
        scheme, _, rest = origin.partition("://")
        page, own = read_host(rest), read_host(host)
        if scheme not in ("http", "https") or page is None or own is None:
            return False
        default = {"http": "80", "https": "443"}[scheme]
        same = page[0] == own[0] and (page[1] or default) == (own[1] or default)
        return same or ":".join(page) in self._hosts or (page[0] in self._hosts and page[0] not in LOOPBACK_HOSTS)


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _shown(value: str) -> str:
    return "".join(character for character in value[:_MAX_SHOWN] if character.isprintable())
