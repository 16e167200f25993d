"""Reading a text file in whatever encoding it was saved."""

from __future__ import annotations

import codecs
from pathlib import Path

from rmlora.errors import ConfigError, InputError, is_installed
from rmlora.json_files import check_file
from rmlora.readable import permissions_named

__all__ = ["read_text"]

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark → encoding; UTF-32's first, because UTF-16's is its beginning."""
_MAX_BYTES = 1 << 30
"""Largest file of text, all of which is in memory at once."""
_SAMPLE = 1 << 20
"""Bytes from which an encoding is guessed."""
_PIECE = 200
"""Bytes of it that are decoded for the error."""
_SHOWN = 30
"""Characters of the text that an error shows."""


def read_text(path: Path, encoding: str | None = None, *, flag: bool = True) -> str:
    """Return the content of a text file.

    UTF-8 and files with a byte order mark need no ``encoding``. Guessing any other is too often wrong to train on, so the
    error shows the guesses to choose from.

    Args:
        path: file to read.
        encoding: of the file; None recognizes it.
        flag: the caller has ``--encoding``, which the error may suggest.

    Raises:
        InputError: the file cannot be read, or is not in this encoding.
        ConfigError: there is no such encoding.
    """
    size = check_file(path, what="Data").st_size
    if size > _MAX_BYTES:
        raise InputError(
            f"{path} has {size:,} bytes, and at most {_MAX_BYTES:,} of text are read: convert it to parquet."
        )
    try:
        with permissions_named(path):
            content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    chosen = marked or encoding or "utf-8"
    try:
        text = content.decode(chosen)
        if chosen != "utf-8" or "\0" not in text:
            return text
        bad = content.index(b"\0")  # valid UTF-8, but text has no zero bytes: UTF-16 without a mark
    except LookupError:
        raise ConfigError(f"There is no encoding '{encoding}': change --encoding, for example to cp1252.") from None
    except UnicodeDecodeError as error:
        bad = error.start
    line = content.count(b"\n", 0, bad) + 1
    raise InputError(f"Line {line} of {path} is not {chosen.upper()}{_guesses(content, bad, flag=flag)}")


def _guesses(content: bytes, bad: int, *, flag: bool) -> str:
    """Return the rest of the error: how the text around the byte ``bad`` reads in the likely encodings."""
    start = content.rfind(b"\n", 0, bad) + 1
    likely: dict[str, str] = {}
    for encoding in (*_likely(content)[:2], "cp1252", "cp1250"):
        try:
            piece = content[:_PIECE] if "16" in encoding else content[start : start + _PIECE]
            shown = " ".join(piece.decode(encoding, "ignore").split())[:_SHOWN]
        except (LookupError, UnicodeError):
            continue
        if shown.isprintable():
            likely.setdefault(shown, encoding)
    if not likely:
        return ", and no other encoding is recognized: save it as UTF-8 text."
    reads = ", ".join(f"as {encoding} it reads '{text}'" for text, encoding in list(likely.items())[:3])
    return f"; {reads}. " + ("Pass the right one with --encoding, or save" if flag else "Save") + " the file as UTF-8."


def _likely(content: bytes) -> list[str]:
    """Return the most likely encodings, the best first; empty if the library that guesses them is not installed."""
    if not is_installed("charset_normalizer"):
        return []
    from charset_normalizer import from_bytes

    sample = content if len(content) <= _SAMPLE else content[: content.rfind(b"\n", 0, _SAMPLE) + 1] or content
    return [match.encoding for match in from_bytes(sample)]
