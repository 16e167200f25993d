"""Which directories of this machine hold the base and the adapters that a bundle was made from.

A manifest holds no absolute paths, since bundles move between machines. So that ``verify`` and ``bench`` need no flags on the
machine where a bundle was made, export and ``adapter add`` record the directories in the user's cache. The key of a record is
a hash of the graph's files and the adapter's tensors.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from rmlora.base import cache_directory
from rmlora.base_name import doubtful_base
from rmlora.errors import OutputError
from rmlora.storage import atomic_file
from rmlora_deploy.bundles.manifest import AdapterEntry, AdapterSource, Manifest

__all__ = [
    "doubtful_base_of",
    "find_adapter_directory",
    "find_base_directory",
    "record_adapter_directory",
    "record_base_directory",
]


def record_base_directory(manifest: Manifest, directory: Path) -> None:
    """Record that the base of a bundle is in ``directory``; a cache that cannot be written is ignored."""
    _record(_base_key(manifest), directory)


def record_adapter_directory(manifest: Manifest, adapter: AdapterSource, directory: Path) -> None:
    """Record that an adapter of a bundle is in ``directory``; a cache that cannot be written is ignored."""
    _record(_adapter_key(manifest, adapter), directory)


def find_base_directory(manifest: Manifest) -> Path | None:
    """Return the directory of the base; None if none is recorded on this machine or it no longer exists."""
    return _find(_base_key(manifest))


def find_adapter_directory(manifest: Manifest, adapter: AdapterSource) -> Path | None:
    """Return the directory of an adapter; None if none is recorded on this machine or it no longer exists."""
    return _find(_adapter_key(manifest, adapter))


def doubtful_base_of(adapter: Path, manifest: Manifest) -> str | None:
    """Return the name that an adapter has for its base, if a bundle's base is called otherwise and no fingerprint tells; else None.

    The base is called as the manifest has it, or as its directory on this machine.

    Args:
        adapter: directory of the adapter.
        manifest: of the bundle.
    """
    if manifest.base is None:
        return None
    directory = find_base_directory(manifest)
    return doubtful_base(adapter, manifest.base.source, *([str(directory)] if directory is not None else []))


def _base_key(manifest: Manifest) -> str:
    return _key(manifest, "base")


def _adapter_key(manifest: Manifest, adapter: AdapterSource) -> str:
    digest = adapter.files[adapter.file] if isinstance(adapter, AdapterEntry) else adapter.sha256
    return _key(manifest, f"adapter {digest}")


def _key(manifest: Manifest, what: str) -> str:
    """Return a key for ``what``, unique to this graph: a base's fingerprint covers its adapted weights only."""
    return hashlib.sha256(json.dumps([sorted(manifest.model.files.items()), what]).encode()).hexdigest()[:32]


def _record(key: str, directory: Path) -> None:
    file = cache_directory() / "sources" / key
    with suppress(OSError, OutputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            temporary.write_text(str(directory.resolve()), encoding="utf-8")


def _find(key: str) -> Path | None:
    with suppress(OSError, UnicodeDecodeError):
        recorded = Path((cache_directory() / "sources" / key).read_text(encoding="utf-8"))
        if recorded.is_dir():
            return recorded
    return None
