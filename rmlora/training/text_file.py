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
"""Bytes of UTF-16 that are decoded for the error."""
_SHOWN = 30
"""Characters of the text that an error shows."""
_CHOICES = 3
"""Encodings that an error shows."""
_FEW = 0.08
"""Share of bytes beyond ASCII below which a text is taken for one of Western Europe."""


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
    raise InputError(_not_in(chosen, path, content, bad, flag=flag))


def _not_in(chosen: str, path: Path, content: bytes, bad: int, *, flag: bool) -> str:
    """Return the error of a file that is not in the encoding ``chosen``: a line of it, as it reads in the likely ones."""
    encodings = _candidates(content)
    start = _telling_line(content, bad, chosen, encodings)
    line = content[start : start + _SAMPLE].partition(b"\n")[0]
    shown = _where_they_differ({name: _reading(content[:_PIECE] if "16" in name else line, name) for name in encodings})
    number = content.count(b"\n", 0, start) + 1
    wrong = f"Line {number} of {path} is not {chosen.upper()}"
    if not shown:
        return f"{wrong}, and no other encoding is recognized: save it as UTF-8 text."
    reads = ", ".join(f"as {encoding} it reads '{text}'" for text, encoding in list(shown.items())[:_CHOICES])
    return (
        f"{wrong}; {reads}. "
        + ("Pass the right one with --encoding, or save" if flag else "Save")
        + " the file as UTF-8."
    )


def _candidates(content: bytes) -> list[str]:
    """Return the encodings to show, the likeliest first.

    Where few bytes are not ASCII, as in the languages of Western Europe, that is cp1252: a handful of '£' or 'é' is too
    little to guess from, and cp1250 decodes it too.
    """
    sample = content[:_SAMPLE]
    foreign = len(sample) - len(sample.decode("ascii", "ignore"))
    likely, usual = _likely(content)[:2], [name for name in ("cp1252", "cp1250") if _decodes(sample, name)]
    western = "cp1252" in usual and foreign < _FEW * len(sample) and b"\0" not in sample
    return list(dict.fromkeys([*(["cp1252"] if western else []), *likely, *usual]))


def _telling_line(content: bytes, bad: int, chosen: str, encodings: list[str]) -> int:
    """Return where the line begins to show: of those that ``chosen`` cannot read, the first with the most readings."""
    first = content.rfind(b"\n", 0, bad) + 1
    best, most, start = first, 0, first
    for line in content[first : first + _SAMPLE].split(b"\n"):
        if not line.isascii() and not _decodes(line, chosen):
            ways = len({_reading(line, encoding) for encoding in encodings})
            if ways > most:
                best, most = start, ways
            if most == len(encodings):
                break
        start += len(line) + 1
    return best


def _where_they_differ(readings: dict[str, str]) -> dict[str, str]:
    """Return what is shown → the first encoding that reads so: the beginning, or the part that tells the readings apart."""
    texts = list(dict.fromkeys(filter(None, readings.values())))
    differ = max((_common(texts[0], other) for other in texts[1:]), default=0)
    begin = differ - _SHOWN // 2 if differ >= _SHOWN else 0
    shown: dict[str, str] = {}
    for encoding, text in readings.items():
        part = text[begin : begin + _SHOWN].strip()
        if part and part.isprintable():
            shown.setdefault(("…" if begin else "") + part, encoding)
    return shown


def _common(text: str, other: str) -> int:
    """Return how many characters two texts begin with that are the same."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(text), len(other)))


def _reading(piece: bytes, encoding: str) -> str:
    """Return the text of ``piece`` in one line; empty if there is none."""
    try:
        return " ".join(piece.decode(encoding, "ignore").split())
    except (LookupError, UnicodeError):
        return ""


def _decodes(piece: bytes, encoding: str) -> bool:
    try:
        piece.decode(encoding)
    except (LookupError, UnicodeError):
        return False
    return True


def _likely(content: bytes) -> list[str]:
    """Return the most likely encodings, the best first; empty if the library that guesses them is not installed."""
    if not is_installed("charset_normalizer"):
        return []
    from charset_normalizer import from_bytes

    sample = content if len(content) <= _SAMPLE else content[: content.rfind(b"\n", 0, _SAMPLE) + 1] or content
    return [match.encoding for match in from_bytes(sample)]
