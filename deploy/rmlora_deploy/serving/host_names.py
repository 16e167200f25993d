"""The names that clients call a server by, in the header Host."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

__all__ = ["LOOPBACK_HOSTS", "hosts_for", "read_host"]

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Names that mean the client's own machine to every client."""
_ANY = "*"


def hosts_for(host: str, allowed: Sequence[str], *, key: bool) -> tuple[str, ...]:
    """Return the names that a server answers to; none if it answers to all.

    Args:
        host: the address or name it listens on, which is allowed too.
        allowed: names that the user gave.
        key: True if the server has a key, which no page knows. Then only names that the user gave are a limit.
    """
    if _ANY in allowed or (key and not allowed):
        return ()
    own = f"[{host}]" if ":" in host else host
    return tuple(dict.fromkeys(name.lower() for name in (*LOOPBACK_HOSTS, own, *allowed)))


def read_host(value: str) -> tuple[str, str] | None:
    """Return the name, in lower case, and the port of a Host header, an empty string if it has none; None if it is invalid."""
    if not value.isascii() or not value.isprintable() or " " in value:  # urlsplit leaves tabs out
        return None
    try:
        parts = urlsplit(f"//{value}")
        port = str(parts.port) if parts.port is not None else ""
    except ValueError:
        return None
    name = parts.hostname
    if not name or parts.path or parts.query or parts.fragment or "@" in value or value.endswith(":"):
        return None
    return (f"[{name}]" if ":" in name else name), port
