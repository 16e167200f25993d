"""The address that a server listens on."""

from __future__ import annotations

import errno
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
    except (OSError, UnicodeError) as error:  # a part of a name that is empty or too long is a UnicodeError
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({reason or error}): choose another --{_wrong_part(error)}."
        ) from None
    return listener


def _wrong_part(error: OSError | UnicodeError) -> str:
    """Return the flag whose value cannot be listened on."""
    of_host = isinstance(error, (socket.gaierror, UnicodeError)) or error.errno == errno.EADDRNOTAVAIL
    return "host" if of_host else "port"


def http_url(host: str, port: int) -> str:
    """Return the URL of a server, with an IPv6 address in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
