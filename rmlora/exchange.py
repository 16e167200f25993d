"""Exchanging two paths in one step, where the system and the file system can."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["exchange"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
"""Errors of a kernel or file system that cannot exchange, or of a container that forbids the call."""


def exchange(first: Path, second: Path) -> bool:
    """Exchange two existing paths of one file system atomically; return False where that cannot be done.

    Uses ``renameat2`` of Linux 3.15 and later. ext4, XFS, Btrfs, tmpfs and overlayfs support it, NFS does not.

    Raises:
        OSError: one of them does not exist, or may not be renamed.
    """
    function = _renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(second))


@cache
def _renameat2() -> Any:
    """Return the C library's function; None if it has none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux, or a C library that is older
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function
