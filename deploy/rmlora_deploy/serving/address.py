"""The address that a server listens on."""

from __future__ import annotations

import socket

from rmlora.errors import ConfigError

__all__ = ["LOOPBACK_ADDRESSES", "http_url", "listen"]

LOOPBACK_ADDRESSES = ("127.0.0.1", "::1", "localhost")

_BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``host`` and ``port``; port 0 takes a free one.

    Raises:
        ConfigError: this address cannot be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({error.strerror or error}): choose another --port."
        ) from None
    return listener


def http_url(host: str, port: int) -> str:
    """Return the URL of a server, with an IPv6 address in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
