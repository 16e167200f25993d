"""Whether a base is called as an adapter's base was: all there is to compare if the adapter has no fingerprint of it.

Names differ for good reasons (a copy, a quantized file, a rename), so the result is a doubt for people, never an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rmlora.checkpoint import CONFIG_NAME
from rmlora.errors import InputError
from rmlora.package import CONFIG_FILE, METADATA_FILE
from rmlora.storage import read_json

__all__ = ["doubtful_base"]

_HUB_CACHE = "models--"
"""How the hub's cache calls the folder of ``owner/name``: ``models--owner--name``; inside, folders are called by commits."""


def doubtful_base(adapter: Path, *bases: str) -> str | None:
    """Return the name that an adapter has for its base, if ``bases`` are called otherwise and no fingerprint tells; else None.

    Args:
        adapter: directory of the adapter; one that cannot be read gives None.
        bases: directory, ``.gguf`` file or hub name; several if they are the same model.
    """
    metadata = _values(adapter / METADATA_FILE)
    if metadata.get("base_weights") or metadata.get("base_fingerprint"):
        return None
    recorded = metadata.get("base_model") or _values(adapter / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(recorded, str) or not (wanted := _last_part(recorded)):
        return None
    return None if any(_is_called(base, recorded, wanted) for base in bases) else recorded


def _is_called(base: str, recorded: str, wanted: str) -> bool:
    """Return True if ``base`` is at the path ``recorded``, or one of its names is ``wanted``."""
    with suppress(OSError, ValueError):
        if Path(recorded).resolve() == Path(base).resolve():
            return True
    if Path(base).suffix.lower() == ".gguf" and _last_part(base).startswith(wanted):  # and its precision
        return True
    return wanted in _names(base)


def _names(base: str) -> Iterator[str]:
    """Yield what a base is called: as it was given, on disk, and as its own configuration has it."""
    yield _last_part(base)
    path = Path(base)
    with suppress(OSError, ValueError):
        if path.exists():
            yield _last_part(str(path.resolve()))
    yield _last_part(str(_values(path / CONFIG_NAME).get("_name_or_path") or ""))


def _last_part(name: str) -> str:
    """Return the last part of a path or hub name, in lower case; empty if it has none that names something."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    cached = next((part for part in reversed(parts) if part.startswith(_HUB_CACHE)), None)
    last = cached.rpartition("--")[2] if cached else (parts[-1] if parts else "")
    return "" if last == ".." else last.casefold()


def _values(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if it cannot be read, which whoever needs it will say."""
    with suppress(InputError, OSError):
        if file.is_file():
            value = read_json(file, what="The file", finite=False)
            return value if isinstance(value, dict) else {}
    return {}
