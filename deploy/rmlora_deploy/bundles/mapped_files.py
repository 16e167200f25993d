"""Watches the files that ONNX Runtime maps into memory instead of reading them: the external weights of a graph.

If somebody writes into such a file, the weights of the running graph change with it. A file that is put in its place by
renaming does no harm, since the mapped one lives on.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from pathlib import Path

from rmlora.errors import InputError
from rmlora.file_identity import FileIdentity, Status, status_of
from rmlora_deploy.bundles.bundle import MODEL_FILE, Bundle

__all__ = ["MappedFiles"]


class MappedFiles:
    """The external weights of a bundle's graph, kept open; safe to use from any thread.

    Open it before the graph's session is, so that both have the same files. On Windows there is nothing to watch: the
    system lets nobody write to a mapped file.

    Args:
        bundle: whose files were compared with the manifest.

    Raises:
        InputError: a file cannot be opened.
    """

    def __init__(self, bundle: Bundle) -> None:
        listed = bundle.manifest.model.files if sys.platform != "win32" else {}
        names = [name for name in listed if name != MODEL_FILE]
        self._files: list[tuple[int, FileIdentity]] = []
        weakref.finalize(self, _close, self._files)
        for name in names:
            self._files.append(_open(bundle.path / name, listed[name]))
        self._lock = threading.Lock()

    def statuses(self) -> list[Status | None]:
        """Return a value that changes whenever a file does; takes a microsecond for each file."""
        return [_status(descriptor) for descriptor, _ in self._files]

    def check(self) -> None:
        """Compare the files that have changed with the manifest.

        Raises:
            ChangedFileError: the content of one is another.
        """
        with self._lock:
            for descriptor, identity in self._files:
                identity.check_open(descriptor)


def _open(path: Path, sha256: str) -> tuple[int, FileIdentity]:
    try:
        return os.open(path, os.O_RDONLY), FileIdentity(path, sha256)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None


def _status(descriptor: int) -> Status | None:
    try:
        return status_of(descriptor)
    except OSError:  # of a file that is gone from a network file system, for example
        return None


def _close(files: list[tuple[int, FileIdentity]]) -> None:
    for descriptor, _ in files:
        os.close(descriptor)
