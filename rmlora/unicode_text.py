"""Whether a text can be written at all: JSON, YAML and command lines can give half of a surrogate pair."""

from __future__ import annotations

__all__ = ["is_unicode"]


def is_unicode(text: str) -> bool:
    """Return False if ``text`` holds half of a surrogate pair, which no encoding has and tokenizers refuse."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
