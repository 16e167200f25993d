"""Printing to streams that cannot show every character, such as a file with ``PYTHONIOENCODING=ascii``."""

from __future__ import annotations

import codecs
import io
import sys

__all__ = ["never_fail_to_print", "shows_unicode"]

_PLAIN = {
    "…": "...", "×": "x", "–": "-", "—": "-", "−": "-", "→": "->", "≤": "<=", "≥": ">=", "√": "sqrt ", "·": "*", "‖": "||",
    "Δ": "delta ", "“": '"', "”": '"', "‘": "'", "’": "'", "±": "+-", "•": "*",
}  # fmt: skip
"""Character of our own messages → how it is written in ASCII."""


def never_fail_to_print() -> None:
    """Make stdout and stderr replace what their encoding lacks: our own signs by ASCII, anything else by its code.

    Without this a command would fail at the print of its result, after all its work.
    """
    codecs.register_error("rmlora-plain", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="rmlora-plain")


def shows_unicode() -> bool:
    """Return True if stdout can show every character."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return encoding.lower().replace("_", "-").startswith("utf")


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in missing)
    return plain, error.end
