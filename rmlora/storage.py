"""Atomic writes: a reader sees the old result or the new one, never a partial one.

Files and directories are written under a temporary name next to the target, flushed to disk and renamed. A process that
is killed before the rename leaves the target unchanged; the next writer of the same target removes what it left behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmlora.errors import OutputError
from rmlora.reading import read_json

__all__ = ["atomic_directory", "atomic_file", "check_writable", "locked", "read_json", "sha256_file", "write_json"]

_MARK = ".partial-"


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to ``target`` if the block succeeds.

    Raises:
        OutputError: the directory is missing or not writable, or the disk is full.
    """
    target = Path(target)
    with _os_errors(target):
        _remove_abandoned(target)
        temporary = _temporary_name(target)
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, target)
            _flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory; rename it to ``target`` if the block succeeds.

    With ``overwrite`` an existing directory is moved aside just before the rename and deleted after it. Without it an
    existing target that is not empty is refused before the block runs.

    Raises:
        OutputError: the target exists, the parent is not writable, or the disk is full.
    """
    target = Path(target)
    refuse_existing(target, overwrite=overwrite)
    with _os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        temporary = _temporary_name(target)
        temporary.mkdir()
        try:
            yield temporary
            for path in sorted(temporary.rglob("*")):
                _flush(path)
            _swap_in(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``directory`` while the block runs; other processes that ask for it wait.

    The lock is advisory and is released if the process dies. On Windows there is no lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise :class:`OutputError` if ``target`` is a file, or a directory that is not empty and may not be overwritten."""
    if target.is_dir():
        if not overwrite and any(target.iterdir()):
            raise OutputError(f"{target} already exists and is not empty: choose another --output or pass --overwrite.")
    elif target.exists():
        raise OutputError(f"{target} exists and is a file, but the output is a directory: choose another --output.")


def check_writable(target: Path) -> None:
    """Raise :class:`OutputError` unless a file can be written at ``target``; call this before long work."""
    target = Path(target)
    if target.is_dir():
        raise OutputError(f"{target} is a directory, but the output is a file: give a file name.")
    if not target.parent.is_dir():
        raise OutputError(f"{target} cannot be written: {target.parent} is not a directory; create it first.")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target} cannot be written: choose a directory you may write to.")


def write_json(path: Path, value: Any, *, allow_nan: bool = False) -> None:
    """Write ``value`` atomically as indented JSON.

    Args:
        path: file to write.
        value: what to write.
        allow_nan: write NaN and Infinity too, which are no JSON, as transformers does in its configurations; otherwise they
            are refused with ValueError.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _swap_in(temporary: Path, target: Path) -> None:
    aside = None
    if target.exists():
        aside = target.with_name(f".{target.name}{_MARK}{os.getpid()}-old")
        os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        if aside is not None:
            os.rename(aside, target)
        raise
    _flush(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name}{_MARK}{os.getpid()}")


def _remove_abandoned(target: Path) -> None:
    """Delete what killed writers of ``target`` left behind; the process id is part of the temporary name."""
    if not target.parent.is_dir():
        return
    prefix = f".{target.name}{_MARK}"
    for path in target.parent.iterdir():
        if not path.name.startswith(prefix):
            continue
        pid, _, role = path.name.removeprefix(prefix).partition("-")
        if pid == str(os.getpid()) or not pid.isdigit() or _alive(int(pid)):
            continue
        if role == "old" and not target.exists():
            os.rename(path, target)  # killed between the two renames: restore the previous result
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync directories
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _os_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"The disk holding {target.parent} is full: free some space or choose another directory; nothing was written."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise OutputError(
                f"{target} cannot be written ({error.strerror}): choose a directory you may write to."
            ) from error
        raise
