"""Running commands that are to be killed: forked from a process that has imported everything, as whole commands, or as process 1.

A forked command begins with its work at once, so that kills land there and not in the imports.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.helpers.cli import environment

__all__ = ["MODES", "Child", "FileEvents", "can_have_pid_1", "start", "start_function"]

MODES = ("forked", "forked, process 1", "forked, no exchange", "whole command", "whole command, process 1")
"""The third plays a file system on which two directories cannot be exchanged in one step."""
_CLONE_NEWUSER, _CLONE_NEWPID = 0x10000000, 0x20000000
_CREATE, _DELETE, _MOVED = 0x100, 0x200, 0x40 | 0x80
_IS_DIRECTORY = 0x40000000


class Child:
    """A process that runs one command; ``pid`` is the one to signal and ``parent`` the one to wait for."""

    def __init__(self, pid: int, parent: int, log: Path) -> None:
        self.pid, self.parent, self.log = pid, parent, log
        self.code: int | None = None

    def ended(self) -> bool:
        """Return True if it has ended, in whatever way."""
        if self.code is None:
            pid, status = os.waitpid(self.parent, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return False if it takes longer."""
        end = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a kill returns when all is dead."""
        inner = _children(self.pid)  # of unshare, which dies before the process that it started
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if number == signal.SIGKILL and not self.wait(60):
            raise RuntimeError(f"process {self.pid} does not die")
        while number == signal.SIGKILL and any(map(_is_alive, inner)):
            time.sleep(0.001)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_alive(pid: int) -> bool:
    """Return True if a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def start(words: Sequence[str], mode: str, log: Path) -> Child:
    """Start a command in one of :data:`MODES`; its output goes to ``log``."""
    if mode.startswith("whole"):
        return _start_whole(words, log, process_1=mode.endswith("process 1"))

    def command() -> int:
        import rmlora.storage
        from rmlora_deploy.cli import main

        if mode.endswith("no exchange"):
            rmlora.storage.exchange = lambda first, second: False
        try:
            main(list(words))
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1
        return 0

    return start_function(command, log, process_1=mode.endswith("process 1"))


def start_function(function: Callable[[], int | None], log: Path, *, process_1: bool = False) -> Child:
    """Fork a process that runs ``function`` and exits with what it returns."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        if process_1:
            _unshare()
            if (inner := os.fork()) != 0:
                os.write(write, struct.pack("i", inner))
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                code = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
                os._exit(code if code >= 0 else 128 - code)
        else:
            os.write(write, struct.pack("i", os.getpid()))
        os._exit(_run(function, log))
    os.close(write)
    (pid,) = struct.unpack("i", os.read(read, 4))
    os.close(read)
    return Child(pid, child, log)


def _run(function: Callable[[], int | None], log: Path) -> int:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    try:
        code = function() or 0
    except BaseException:  # noqa: BLE001 - a forked process must not return into the campaign
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _start_whole(words: Sequence[str], log: Path, *, process_1: bool) -> Child:
    command = [sys.executable, "-m", "rmlora_deploy", *words]
    if process_1:
        user = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
        command = ["unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc", *command]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment())
    process.returncode = 0  # waited for by Child
    return Child(process.pid, process.pid, log)


def can_have_pid_1() -> bool:
    """Return True if this system lets a process be number 1 of a namespace of its own."""
    log = Path(os.devnull)
    child = start_function(lambda: 0 if os.getpid() == 1 else 1, log, process_1=True)
    return child.wait(10) and child.code == 0


def _unshare() -> None:
    """Give the next child its own process ids."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0 and libc.unshare(_CLONE_NEWPID) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID) != 0:
        os._exit(99)
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


class FileEvents:
    """Counts what is created, renamed and deleted below a directory, through Linux's inotify."""

    def __init__(self, root: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "inotify is not available")
        self._watched: dict[int, Path] = {}
        self.count = 0
        self._watch(root)

    def _watch(self, directory: Path) -> None:
        number = self._libc.inotify_add_watch(self._file, os.fsencode(directory), _CREATE | _DELETE | _MOVED)
        if number >= 0:
            self._watched[number] = directory
            for entry in os.scandir(directory):
                if entry.is_dir(follow_symlinks=False):
                    self._watch(Path(entry.path))

    def poll(self, seconds: float = 0.0) -> int:
        """Wait for something to happen, and return how many events there were in all."""
        select.select([self._file], [], [], seconds)
        try:
            data = os.read(self._file, 1 << 16)
        except BlockingIOError:
            return self.count
        offset = 0
        while offset < len(data):
            number, mask, _, length = struct.unpack_from("iIII", data, offset)
            name = data[offset + 16 : offset + 16 + length].rstrip(b"\0")
            offset += 16 + length
            self.count += 1
            if mask & _IS_DIRECTORY and mask & (_CREATE | _MOVED) and number in self._watched:
                try:
                    self._watch(self._watched[number] / os.fsdecode(name))
                except OSError:  # gone already
                    continue
        return self.count

    def close(self) -> None:
        """Stop watching."""
        os.close(self._file)
