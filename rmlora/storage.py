"""Atomic writes: a reader sees the old result or the new one, never a partial one.

Files and directories are made in a hidden directory next to the target (:mod:`rmlora.workplace`), flushed to disk, given the
permissions of the umask, and renamed. A process that is killed before the rename leaves the target unchanged; the next
writer of the same target deletes what it left behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from rmlora.errors import OutputError, ReadOnlyError, RMLoRAError
from rmlora.exchange import exchange
from rmlora.json_files import read_json
from rmlora.readable import permissions_named
from rmlora.workplace import Workplace, apply_umask, is_workplace_of, workplace

__all__ = [
    "atomic_directory",
    "atomic_file",
    "check_changeable",
    "check_makeable",
    "check_writable",
    "flush",
    "locked",
    "read_json",
    "refuse_existing",
    "sha256_file",
    "write_json",
    "write_tensors",
]


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to ``target`` if the block succeeds. A link at ``target`` is written through.

    Raises:
        OutputError: the directory is missing or not writable, ``target`` is not a regular file, or the disk is full.
    """
    check_writable(target)
    with _os_errors(target), workplace(_real(target)) as place:
        yield place.new
        apply_umask(place.new, place.path)
        flush(place.new)
        os.replace(place.new, place.target)
        flush(place.target.parent)


@contextmanager
def atomic_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory; rename it to ``target`` if the block succeeds. A link at ``target`` is followed.

    With ``overwrite`` an existing directory is exchanged for the new one, and then deleted. Without it a target that is not
    empty is refused before the block runs, and also if it appears while the block runs.

    Raises:
        OutputError: the target exists, the parent is not writable, or the disk is full.
    """
    refuse_existing(target, overwrite=overwrite)
    with _os_errors(target):
        real = _real(target)
        real.parent.mkdir(parents=True, exist_ok=True)
        with workplace(real) as place:
            place.new.mkdir()
            yield place.new
            apply_umask(place.new, place.path)
            for path in (*sorted(place.new.rglob("*")), place.new):
                flush(path)
            _put_in_place(place, overwrite=overwrite)
            flush(real.parent)


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
    """Raise :class:`OutputError` if a directory cannot be written at ``target``; call this before long work.

    That is so for a file, for a directory that is not empty and may not be overwritten, and for a mount point.
    """
    target = Path(target)
    with _os_errors(target):
        if os.path.ismount(target):
            raise OutputError(f"{target} is a mount point, which cannot be replaced: choose a directory inside it.")
        try:
            mode = target.stat().st_mode  # once, because another process may replace the directory at any moment
        except OSError as error:
            if error.errno in _ABSENT:
                return
            raise
        if not stat.S_ISDIR(mode):
            raise OutputError(f"{target} exists and is a file, but the output is a directory: choose another --output.")
        if not overwrite and any(target.iterdir()):
            raise OutputError(f"{target} already exists and is not empty: choose another --output or pass --overwrite.")


def check_writable(target: Path) -> None:
    """Raise :class:`OutputError` unless a file can be written at ``target``; call this before long work."""
    target = Path(target)
    if target.is_dir():
        raise OutputError(f"{target} is a directory, but the output is a file: give a file name.")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise OutputError(f"{target} is a device or pipe, but the output is a file: give a file name.")
    if not target.parent.is_dir():
        raise OutputError(f"{target} cannot be written: {target.parent} is not a directory; create it first.")
    if not _may_change(target.parent):
        raise ReadOnlyError(f"{target} cannot be written: choose a directory you may write to.")


def check_makeable(directory: Path, *, replaced: bool = False) -> None:
    """Raise :class:`OutputError` unless ``directory`` can be made; call this before long work.

    It is tried, since permissions do not tell everything: of a read-only file system, for example.

    Args:
        directory: what will be made, with its parents.
        replaced: one that exists will be exchanged for a new one; otherwise files will be written into it.
    """
    directory = Path(directory)
    with _os_errors(directory):
        place = _real(directory)
        if not replaced and place.exists():
            if not place.is_dir():
                raise OutputError(f"{directory} exists and is a file, but it must be a directory: choose another.")
            place = place / "new"
        while not place.parent.exists():
            place = place.parent
        with workplace(place):
            pass


def check_changeable(directory: Path) -> None:
    """Raise :class:`ReadOnlyError` if this process may not write and delete files in ``directory``, which need not exist."""
    if directory.is_dir() and not _may_change(directory):
        raise ReadOnlyError(
            f"{directory} cannot be changed (Permission denied): change its owner or permissions, or run as its owner."
        )


def _may_change(directory: Path) -> bool:
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write ``tensors``, which must be contiguous, to the safetensors file ``path``.

    The library's own ``save_file`` makes a file that only its owner can read, and reports a full disk in words only.
    """
    path.write_bytes(save(dict(tensors), metadata=dict(metadata) if metadata else None))


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
    """Return the hex SHA-256 of a file, read in blocks of 1 MiB.

    Raises:
        InputError: this process may not read it.
    """
    digest = hashlib.sha256()
    with permissions_named(path), open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _put_in_place(place: Workplace, *, overwrite: bool) -> None:
    """Rename the finished directory to its target, or exchange the two.

    Raises:
        OutputError: the target is not an empty directory, and may not be overwritten.
    """
    for _ in range(10):  # others may write or delete the target at the same time
        try:
            os.rename(place.new, place.target)  # succeeds only if there is nothing, or an empty directory
            return
        except OSError as error:
            refuse_existing(place.target, overwrite=overwrite)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            if exchange(place.new, place.target):
                return
            os.rename(place.target, place.previous)
        except FileNotFoundError:
            continue
    raise OutputError(f"{place.target} is being written by other processes: try again when they have ended.")


def _real(target: Path) -> Path:
    """Return the path that ``target`` leads to, through links.

    Raises:
        OutputError: the links form a circle.
    """
    try:
        return Path(target).resolve()
    except RuntimeError:
        raise OutputError(f"{target} is a link that leads to itself: choose another name.") from None


def flush(path: Path) -> None:
    """Have the disk store a file or directory, as far as its file system can do that."""
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
    target = Path(target)
    try:
        yield
    except RMLoRAError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(target) from error
        if (error.errno in _REFUSED and _concerns(error, target)) or _cannot_make(error, target):
            kind = ReadOnlyError if error.errno in _READ_ONLY else OutputError
            raise kind(
                f"{target} cannot be written ({error.strerror}): choose a directory you may write to."
            ) from error
        raise
    except Exception as error:
        # Libraries report a full disk in errors of their own.
        if os.strerror(errno.ENOSPC) in str(error):
            raise _disk_full(target) from error
        raise


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Nothing is there, or a circle of links, which whoever follows them refuses."""
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_REFUSED = (*_READ_ONLY, errno.ENOTDIR, errno.ENAMETOOLONG)


def _concerns(error: OSError, target: Path) -> bool:
    """Return True unless ``error`` is about a file elsewhere, such as one that is read while the target is written."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, Path))]
    near = {target.parent.absolute(), target.parent.resolve()}
    return not names or any(
        parent in near for name in names for parent in (Path(name).absolute(), *Path(name).absolute().parents)
    )


def _cannot_make(error: OSError, target: Path) -> bool:
    """Return True if ``target`` or a directory above it cannot be made; ``/proc`` calls missing what it refuses to make."""
    if error.errno not in (*_REFUSED, errno.ENOENT) or not isinstance(error.filename, (str, Path)):
        return False
    missing, real = Path(error.filename), Path(target).resolve()
    made = [real, *real.parents]
    return missing in made or any(is_workplace_of(missing, path) for path in made)


def _disk_full(target: Path) -> OutputError:
    return OutputError(
        f"The disk holding {target.parent} is full: free some space or choose another directory; nothing was written."
    )
