"""Where, on this machine, the base and the adapters of bundles lie.

A manifest names no paths: it travels. So that ``verify`` and ``bench`` need no flags where a bundle was made, export and
``adapter add`` note the directories in the user's cache, under what identifies the graph and the adapter.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from rmlora.base import cache_directory
from rmlora.errors import OutputError
from rmlora.storage import atomic_file
from rmlora_deploy.bundles.manifest import AdapterEntry, AdapterSource, Manifest

__all__ = ["find_adapter_directory", "find_base_directory", "note_adapter_directory", "note_base_directory"]


def note_base_directory(manifest: Manifest, directory: Path) -> None:
    """Note that the base of a bundle lies in ``directory``; a cache that cannot be written is no error."""
    _note(_base_key(manifest), directory)


def note_adapter_directory(manifest: Manifest, adapter: AdapterSource, directory: Path) -> None:
    """Note that an adapter of a bundle lies in ``directory``."""
    _note(_adapter_key(manifest, adapter), directory)


def find_base_directory(manifest: Manifest) -> Path | None:
    """Return where the base lies; None where that is not known on this machine, or nothing is there any more."""
    return _find(_base_key(manifest), manifest.base.source if manifest.base is not None else "")


def find_adapter_directory(manifest: Manifest, adapter: AdapterSource) -> Path | None:
    """Return where an adapter lies; None likewise."""
    return _find(_adapter_key(manifest, adapter), adapter.source)


def _base_key(manifest: Manifest) -> str:
    return _key(manifest, "base")


def _adapter_key(manifest: Manifest, adapter: AdapterSource) -> str:
    digest = adapter.files[adapter.file] if isinstance(adapter, AdapterEntry) else adapter.sha256
    return _key(manifest, f"adapter {digest}")


def _key(manifest: Manifest, what: str) -> str:
    """Return a key for ``what`` of exactly this graph: a base's fingerprint covers its adapted weights only."""
    return hashlib.sha256(json.dumps([sorted(manifest.model.files.items()), what]).encode()).hexdigest()[:32]


def _note(key: str, directory: Path) -> None:
    file = cache_directory() / "sources" / key
    with suppress(OSError, OutputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            temporary.write_text(str(directory.resolve()), encoding="utf-8")


def _find(key: str, recorded: str) -> Path | None:
    with suppress(OSError, UnicodeDecodeError):
        noted = Path((cache_directory() / "sources" / key).read_text(encoding="utf-8"))
        if noted.is_dir():
            return noted
    path = Path(recorded)  # manifests of format version 1 have absolute paths
    return path if path.is_absolute() and path.exists() else None
