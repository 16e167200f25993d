"""Confines names that come from data to the directory they were found in.

A bundle, an adapter package or a checkpoint may come from anybody, and what it says must not reach files elsewhere:

* **A name read from a file** (of a manifest, a checkpoint index, an ONNX graph, a tokenizer's configuration) is relative and
  stays inside the directory of that file, also after links are followed: :func:`confine`.
* **The files of an adapter package, and those copied along with a model**, may not be links that lead out:
  :func:`confine_files`. Otherwise a link named ``README.md`` would put any file of this machine into a result.
* **A path that the user gives** is followed wherever it leads. It may be a link itself.
* **Snapshots in the cache of the Hugging Face hub** consist of links to ``blobs``, next to ``snapshots``. These are followed.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from rmlora.errors import InputError

__all__ = ["confine", "confine_files"]


def confine(directory: Path, name: str, *, where: object) -> Path:
    """Return ``directory / name`` if that is a path inside ``directory``, links followed. The file need not exist.

    Args:
        directory: which the name is relative to.
        name: as it was read.
        where: the file that the name was read from, for the error.

    Raises:
        InputError: the name is absolute, empty, has a part ``..`` or a NUL character, or leads out through a link.
    """
    if not isinstance(name, str) or not _is_plain(name):
        raise InputError(
            f"{where} names the file {name!r}, which is not a path inside {directory}: the file is damaged or not to be "
            "trusted; get it again from its source."
        )
    path = directory / name
    if not _stays_inside(path, directory):
        raise InputError(
            f"{where} names the file '{name}', which is a link that leads out of {directory}: put a copy of the file in its "
            "place."
        )
    return path


def confine_files(directory: Path, names: Iterable[str | Path]) -> None:
    """Raise :class:`InputError` if one of the files ``names`` in ``directory`` is a link that leads out of it."""
    for name in names:
        path = directory / name
        if not _stays_inside(path, directory):
            raise InputError(f"{path} is a link that leads out of its directory: put a copy of the file in its place.")


def _is_plain(name: str) -> bool:
    """Return True if ``name`` is a relative path without ``..``, on this system and on others."""
    flavors = (PurePosixPath(name), PureWindowsPath(name))
    outside = any(path.is_absolute() or path.anchor or ".." in path.parts for path in flavors)
    return name.isprintable() and bool(PurePosixPath(name).parts) and not outside


def _stays_inside(path: Path, directory: Path) -> bool:
    try:
        root, real = directory.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, or a name that is too long
        return False
    if real != root and real.is_relative_to(root):
        return True
    blobs = _hub_blobs(root)
    return blobs is not None and real.parent == blobs


def _hub_blobs(root: Path) -> Path | None:
    """Return the directory of contents that a hub snapshot at or above ``root`` links to; None if there is none."""
    for path in (root, *root.parents):
        if path.parent.name == "snapshots":
            blobs = path.parent.parent / "blobs"
            try:
                # A link named "blobs" would lead anywhere.
                return blobs if stat.S_ISDIR(blobs.lstat().st_mode) else None
            except OSError:
                return None
    return None
