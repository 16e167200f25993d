"""Looking for files so that a file which may not be read is called that, and never missing or corrupt."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rmlora.errors import InputError

__all__ = ["check_readable", "is_readable_directory", "is_readable_file", "permissions_named"]


def is_readable_file(path: Path) -> bool:
    """Return True if ``path`` is a file, and False if there is none.

    Raises:
        InputError: this process may not read it, or may not look into its directory.
    """
    with permissions_named(path):
        if not _is(path, Path.is_file):
            return False
        with open(path, "rb"):
            return True


def is_readable_directory(path: Path) -> bool:
    """Return True if ``path`` is a directory, and False if there is none.

    Raises:
        InputError: this process may not list it.
    """
    with permissions_named(path):
        if not _is(path, Path.is_dir):
            return False
        with os.scandir(path):
            return True


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # so it cannot exist
            return False
        raise


def check_readable(paths: Iterable[Path]) -> None:
    """Raise :class:`InputError` naming the first of ``paths`` that exists and that this process may not read.

    For libraries that would call such a file missing or damaged, or would silently do without it.
    """
    for path in paths:
        is_readable_file(path)


@contextmanager
def permissions_named(path: Path) -> Iterator[None]:
    """Turn a :class:`PermissionError` of the block, which reads ``path``, into an :class:`InputError` that says so."""
    try:
        yield
    except PermissionError as error:
        name = error.filename if isinstance(error.filename, str) else path
        raise InputError(
            f"Permission denied: this user may not read {name}; change its owner or permissions, or run as its owner."
        ) from None
