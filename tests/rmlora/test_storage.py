"""Writes are complete or absent, whatever goes wrong; leftovers of killed writers are removed."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rmlora.errors import InputError, OutputError
from rmlora.exchange import exchange
from rmlora.storage import (
    atomic_directory,
    atomic_file,
    read_json,
    refuse_existing,
    sha256_file,
    write_json,
    write_tensors,
)
from tests.helpers.cli import environment


def test_a_file_appears_complete_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "value.json"
    write_json(target, {"a": 1})
    write_json(target, {"a": 2})
    assert read_json(target, what="Value") == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]
    assert len(sha256_file(target)) == 64


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "value"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["value"]


def test_nan_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("existing", [False, True])
def test_a_directory_is_swapped_in_or_left_alone(tmp_path: Path, existing: bool, fail: bool) -> None:
    target = tmp_path / "result"
    if existing:
        target.mkdir()
        (target / "old").write_text("old")
    try:
        with atomic_directory(target, overwrite=True) as directory:
            (directory / "sub").mkdir()
            (directory / "sub" / "new").write_text("new")
            if fail:
                raise RuntimeError("stop")
    except RuntimeError:
        assert fail
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert there == ({"result/old"} if fail and existing else set() if fail else {"result/sub/new"})


def test_existing_targets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(
        OutputError, match="already exists and is not empty: choose another --output or pass --overwrite"
    ):
        with atomic_directory(tmp_path / "full"):
            pass
    with pytest.raises(OutputError, match="is a file, but the output is a directory"):
        with atomic_directory(tmp_path / "full" / "file", overwrite=True):
            pass
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as directory:
        (directory / "file").write_text("x")


WRITER = """
import sys, time
from pathlib import Path
from rmlora import storage
storage.exchange = (lambda first, second: False) if sys.argv[3] == "renames" else storage.exchange
rename = storage.os.rename
def stop(*paths):
    if sys.argv[2] == "between":
        rename(*paths)
        if storage.Path(paths[0]).name == "result" and "partial" not in str(storage.Path(paths[0]).parent):
            print("here", flush=True); time.sleep(60)
    else:
        rename(*paths)
storage.os.rename = stop
with storage.atomic_directory(Path(sys.argv[1]), overwrite=True) as directory:
    (directory / "file").write_text("new")
    if sys.argv[2] == "inside":
        print("here", flush=True); time.sleep(60)
"""
"""Writes a directory and stops at a moment that the test chooses, to be killed there."""


def killed_writer(target: Path, moment: str, how: str = "exchange") -> None:
    """Kill a process that writes ``target`` at a moment."""
    with writer(target, moment, how) as process:
        process.kill()


@contextmanager
def writer(target: Path, moment: str, how: str = "exchange") -> Iterator[subprocess.Popen[str]]:
    """Run a process that writes ``target`` and waits at a moment."""
    command = [sys.executable, "-c", WRITER, str(target), moment, how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def write(target: Path, content: str, **options: bool) -> None:
    """Write a directory with one file."""
    with atomic_directory(target, **options) as directory:
        (directory / "file").write_text(content)


def test_leftovers_of_dead_writers_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    target = tmp_path / "result"
    killed_writer(target, "inside")
    killed_writer(tmp_path / "other", "inside")
    with writer(target, "inside"):
        assert len(list(tmp_path.glob(".result.partial-*"))) == 1  # the writer itself has removed the other's
        write(target, "mine")
        assert (target / "file").read_text() == "mine"
        assert len(list(tmp_path.glob(".result.partial-*"))) == 1
    write(target, "again", overwrite=True)
    assert not list(tmp_path.glob(".result.partial-*")) and list(tmp_path.glob(".other.partial-*"))


def test_a_result_set_aside_by_a_killed_writer_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "result"
    write(target, "previous")
    killed_writer(target, "between", "renames")
    assert not target.exists()
    with pytest.raises(RuntimeError, match="stop"), atomic_directory(target, overwrite=True):
        assert (target / "file").read_text() == "previous"
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert (target / "file").read_text() == "previous"


@pytest.mark.parametrize("exchanged", [True, False])
def test_overwriting_with_and_without_an_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    if not exchanged:
        monkeypatch.setattr("rmlora.storage.exchange", lambda first, second: False)
    write(tmp_path / "result", "old")
    write(tmp_path / "result", "new", overwrite=True)
    assert (tmp_path / "result" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_paths_are_exchanged_where_the_system_can(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, name)
    swapped = exchange(tmp_path / "a", tmp_path / "b")
    assert swapped or sys.platform != "linux"
    assert (tmp_path / "a" / "file").read_text() == ("b" if swapped else "a")
    with pytest.raises(FileNotFoundError):
        assert exchange(tmp_path / "a", tmp_path / "none") or os.rename(tmp_path / "none", tmp_path / "a")


def test_a_target_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="already exists and is not empty"):
        with atomic_directory(tmp_path / "result") as directory:
            (directory / "file").write_text("mine")
            write(tmp_path / "result", "theirs")
    with pytest.raises(OutputError, match="exists and is a file"):
        with atomic_directory(tmp_path / "file"):
            (tmp_path / "file").write_text("theirs")
    assert (tmp_path / "result" / "file").read_text() == "theirs"
    assert (tmp_path / "file").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "result"]


def test_many_writers_of_one_target_at_once(tmp_path: Path) -> None:
    """Nobody takes another's workplace for abandoned, also in the moment in which it is made."""

    def work(number: int) -> None:
        for _ in range(20):
            write(tmp_path / "result", str(number), overwrite=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert (tmp_path / "result" / "file").read_text().isdigit()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_links_given_as_a_target_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    write(tmp_path / "current", "new", overwrite=True)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OutputError, match="leads to itself"):
        write(tmp_path / "circle", "x")
    assert (tmp_path / "current").is_symlink() and (tmp_path / "v1" / "file").read_text() == "new"


@pytest.mark.parametrize("target", ["/", "/proc"])
def test_mount_points_are_refused_before_the_work(target: str) -> None:
    with pytest.raises(OutputError, match="is a mount point, which cannot be replaced: choose a directory inside it"):
        refuse_existing(Path(target), overwrite=True)


def test_devices_are_not_replaced_by_files() -> None:
    with pytest.raises(OutputError, match="/dev/null is a device or pipe"):
        write_json(Path("/dev/null"), {})


def test_long_names(tmp_path: Path) -> None:
    write(tmp_path / ("ä" * 120), "x")
    write_json(tmp_path / ("b" * 250), {})
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_directory(tmp_path / "result") as directory:
            write_tensors(directory / "a.safetensors", {"x": np.zeros(3, np.float32)})
            save_file({"x": np.zeros(3, np.float32)}, directory / "b.safetensors")
            Path(tempfile.mkdtemp(dir=directory)).joinpath("c").touch()
        with atomic_file(tmp_path / "one") as temporary:
            save_file({"x": np.zeros(3, np.float32)}, temporary)
    finally:
        os.umask(before)
    paths = list(tmp_path.rglob("*"))
    assert len(paths) == 6
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "is full: free some space"),
        (errno.EROFS, "cannot be written"),
        (errno.EACCES, "cannot be written"),
    ],
)
def test_disk_errors_say_what_to_do(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(OutputError, match=message), atomic_directory(tmp_path / "result"):
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


def test_a_real_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], check=False, capture_output=True
    )
    if mounted.returncode:  # not allowed to mount: use /dev/full as the full disk
        with pytest.raises(OutputError, match="is full"), atomic_directory(tmp_path / "result"):
            with open("/dev/full", "wb") as file:
                file.write(b"x" * 4096)
        return
    try:
        with pytest.raises(OutputError, match="is full"), atomic_directory(mount / "result") as directory:
            (directory / "file").write_bytes(b"x" * 1_000_000)
        assert not list(mount.iterdir())
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_unreadable_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Manifest not found: .* does not exist"):
        read_json(tmp_path / "none.json", what="Manifest")
    (tmp_path / "bad.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json(tmp_path / "bad.json", what="Manifest")
