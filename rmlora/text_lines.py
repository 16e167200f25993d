"""The lines of a text file."""

from __future__ import annotations

import re

__all__ = ["text_lines"]

_END = re.compile(r"\r\n|\r|\n")


def text_lines(text: str) -> list[str]:
    """Return the lines of ``text`` without their ends.

    ``str.splitlines`` also ends lines at form feeds and at U+0085, U+2028 and the like, which occur within texts from the web.
    """
    return _END.split(text.removesuffix("\n"))
