"""Hidden directories in which results are made, next to where they will be.

A workplace is called ``.<target>.partial-<random>``. Its writer holds a lock on it, which the kernel releases when the process
ends in whatever way. So the next writer of the same target recognizes abandoned workplaces with certainty, which process ids
do not allow: in a container every process has the id 1. ::

    .out.partial-6f0c…/
        out              the new result, until it is renamed
        out.previous     the old result, only while it is replaced without an atomic exchange
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rmlora.errors import ReadOnlyError

__all__ = ["Workplace", "apply_umask", "clean_abandoned", "is_workplace_of", "workplace"]

_MARK = ".partial-"
_LONGEST = 180
"""Longest name of a target, in bytes, that becomes part of the name of its workplace; most file systems allow 255."""


@dataclass(frozen=True)
class Workplace:
    """A locked directory for one unfinished result."""

    path: Path
    target: Path

    @property
    def new(self) -> Path:
        """Where the result is made. It has the target's name, which writers may use in what they write."""
        return self.path / self.target.name

    @property
    def previous(self) -> Path:
        """Where the old result is while it is replaced."""
        return self.path / f"{self.target.name}.previous"

    def settle(self) -> None:
        """Put the old result back if it was not replaced, and delete everything else.

        Raises:
            ReadOnlyError: the old result belongs to another user.
        """
        try:
            self._settle()
        except KeyboardInterrupt:  # Ctrl-C, while the result of a command is cleaned up
            self._settle()
            raise

    def _settle(self) -> None:
        if os.path.lexists(self.previous) and not os.path.lexists(self.target):
            try:
                os.rename(self.previous, self.target)
            except PermissionError:
                raise ReadOnlyError(
                    f"{self.previous} is the old {self.target.name}, which a killed run of another user has set aside: give "
                    "the command again as that user, or move it back."
                ) from None
        shutil.rmtree(self.path, ignore_errors=True)


def apply_umask(path: Path, made_like: Path) -> None:
    """Give ``path``, and all that is in it, the permissions that the process's umask asks for.

    Some writers make files that only their owner can read, such as safetensors and everything from :mod:`tempfile`. The umask
    is seen in the permissions of ``made_like``, a new directory, since it cannot be read without setting it for all threads.
    """
    mode = stat.S_IMODE(made_like.stat().st_mode)
    for item in (path, *path.rglob("*")):
        found = item.lstat().st_mode
        wanted = mode if stat.S_ISDIR(found) else mode & 0o666
        if not stat.S_ISLNK(found) and stat.S_IMODE(found) != wanted:
            item.chmod(wanted)


@contextmanager
def workplace(target: Path) -> Iterator[Workplace]:
    """Yield a new workplace for ``target``, and delete it in the end; those that killed writers left are deleted first.

    Raises:
        OSError: it cannot be made.
        ReadOnlyError: a killed run of another user has set the old result aside.
    """
    clean_abandoned(target)
    path, lock = _make(target)
    place = Workplace(path, target)
    try:
        yield place
    finally:
        place.settle()
        if lock is not None:
            os.close(lock)
        clean_abandoned(target)  # again: a writer may have been dying still when this one began


def clean_abandoned(target: Path) -> None:
    """Settle the workplaces that killed writers of ``target`` left: put an old result back, delete unfinished ones."""
    prefix = _prefix(target)
    names = sorted(os.listdir(target.parent)) if target.parent.is_dir() else []
    for path in (target.parent / name for name in names if name.startswith(prefix)):
        try:
            lock = _lock(path, wait=False)
        except FileNotFoundError:
            continue
        if lock is None:
            continue  # its writer lives
        try:
            Workplace(path, target).settle()
        finally:
            os.close(lock)


def is_workplace_of(path: Path, target: Path) -> bool:
    """Return True if ``path`` has the name of a workplace for ``target``."""
    return path.parent == target.parent and path.name.startswith(_prefix(target))


def _make(target: Path) -> tuple[Path, int | None]:
    """Return a new directory and the descriptor that holds its lock; None where there are no locks."""
    while True:
        path = target.with_name(_prefix(target) + secrets.token_hex(6))
        path.mkdir()
        try:
            lock = _lock(path, wait=True)
        except FileNotFoundError:
            continue
        if lock is None or _is_at(path, lock):
            return path, lock
        # Another writer took it for abandoned in the moment before it was locked, and has deleted it.
        os.close(lock)


def _prefix(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}{_MARK}"


def _lock(path: Path, *, wait: bool) -> int | None:
    """Lock a directory and return the descriptor that holds the lock; None if another process has it or locks do not work.

    Raises:
        FileNotFoundError: it has been deleted.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing is recognized as abandoned
        return None
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except FileNotFoundError:
        raise
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
