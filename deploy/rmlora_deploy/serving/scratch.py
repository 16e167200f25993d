"""A temporary directory of a server. The next server of the same user deletes those of servers that were killed.

::

    /tmp/rmlora-serve-1000/                 only this user may enter it; deleted when it is empty
        .files.partial-6f0c…/files          of one server, which holds a lock (:mod:`rmlora.workplace`)
"""

from __future__ import annotations

import os
import stat
import tempfile
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rmlora.workplace import workplace

__all__ = ["Scratch"]

_ATTEMPTS = 100


class Scratch:
    """A new empty directory, deleted by :meth:`close`, when the program ends, or by the next server."""

    def __init__(self) -> None:
        stack = ExitStack()
        self.path = _make(stack)
        self.close = weakref.finalize(self, stack.close)
        """Deletes the directory; may be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make(stack: ExitStack) -> Path:
    for _ in range(_ATTEMPTS):
        home = _home()
        stack.callback(_delete_if_empty, home)
        try:
            place = stack.enter_context(workplace(home / "files"))
            place.new.mkdir()
            return place.new
        except FileNotFoundError:  # another server that ended has just deleted it
            stack.close()
    raise FileNotFoundError(f"{tempfile.gettempdir()} is emptied by other processes again and again.")


def _home() -> Path:
    """Return this user's directory of servers, or a new one if somebody else has taken its name."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    home = Path(tempfile.gettempdir()) / f"rmlora-serve-{user}"
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    with suppress(FileNotFoundError):
        found = home.lstat()
        own = not hasattr(os, "getuid") or (found.st_uid == user and not found.st_mode & 0o077)
        if stat.S_ISDIR(found.st_mode) and own:
            return home
    return Path(tempfile.mkdtemp(prefix="rmlora-serve-"))


def _delete_if_empty(home: Path) -> None:
    with suppress(OSError):
        home.rmdir()
