"""Recognizes a file that is read again and again: its content must stay what it was.

Hashing an adapter file takes many times as long as reading it. So the SHA-256 is computed only if the file's status says
that somebody may have written to it since it was last computed. The status consists of device, inode, size, and the times of
the last change of the content and of the inode. The second of these times cannot be set by a program, but its resolution is
limited: a second change within the same tick of the clock would not show. Hence a status counts only once it is
:data:`_SETTLED` old, as in git's index. Windows has no such time, and there every read is hashed.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rmlora.errors import InputError

__all__ = ["ChangedFileError", "FileIdentity", "Status", "path_status", "status_of"]

_SETTLED = 2_000_000_000
"""Nanoseconds; the coarsest clock of a file system in use ticks every two seconds."""
_BLOCK = 1 << 20


class ChangedFileError(InputError):
    """A file has another content than when this process began to use it."""


class Status(NamedTuple):
    """What of an open file's status changes whenever its content does."""

    device: int
    inode: int
    size: int
    modified: int
    """Time of the last change of the content (ns), which programs can set."""
    changed: int
    """Time of the last change of the content or the inode (ns)."""


class FileIdentity:
    """Knows what the content of a file must be; safe to use from any thread.

    Args:
        path: of the file, for the error.
        sha256: of the right content, in hex.
    """

    def __init__(self, path: Path, sha256: str) -> None:
        self._path, self._sha256 = path, sha256
        self._right: Status | None = None
        """A status with which the content was right, and which the next change of the content will change."""

    def check(self, before: Status, after: Status, started: int, digest: Callable[[], str]) -> None:
        """Compare content that was read from the file with the right one.

        Args:
            before: the file's status before it was read.
            after: its status after it was read.
            started: time before the reading (``time.time_ns``).
            digest: returns the SHA-256 of what was read; called only if the status does not suffice.

        Raises:
            ChangedFileError: the content is another one.
        """
        if before == after == self._right:
            return
        if digest() != self._sha256:
            raise ChangedFileError(
                f"{self._path} is not what it was when this process began to use it (SHA-256): put the former file back, "
                "or open the bundle again."
            )
        settled = started - before.changed > _SETTLED and sys.platform != "win32"
        self._right = before if settled and before == after else None

    def check_open(self, descriptor: int) -> None:
        """Compare the content of an open file with the right one.

        Raises:
            ChangedFileError: the content is another one, or cannot be read.
        """
        try:
            started, before = time.time_ns(), status_of(descriptor)
            if before == self._right:
                return
            digest, after = _digest(descriptor), status_of(descriptor)
        except OSError as error:
            raise ChangedFileError(f"{self._path} cannot be read any more ({error.strerror}).") from None
        self.check(before, after, started, lambda: digest)


def status_of(descriptor: int) -> Status:
    """Return the status of an open file."""
    return _status(os.fstat(descriptor))


def path_status(path: Path) -> Status:
    """Return the status of the file at ``path``.

    Raises:
        OSError: there is none, or it may not be looked at.
    """
    return _status(path.stat())


def _status(status: os.stat_result) -> Status:
    return Status(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _digest(descriptor: int) -> str:
    digest = hashlib.sha256()
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
        file.seek(0)
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
