"""Writes are complete or absent, whatever goes wrong; leftovers of killed writers are removed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from rmlora.errors import InputError, OutputError
from rmlora.storage import atomic_directory, atomic_file, read_json, sha256_file, write_json


def dead_process_id() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


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


def test_leftovers_of_dead_writers_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    dead, live = dead_process_id(), os.getppid()
    for pid in (dead, live):
        (tmp_path / f".result.partial-{pid}").mkdir()
    (tmp_path / f".other.partial-{dead}").mkdir()
    with atomic_directory(tmp_path / "result") as directory:
        (directory / "file").write_text("x")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"result", f".result.partial-{live}", f".other.partial-{dead}"}


def test_a_result_set_aside_by_a_killed_writer_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / f".result.partial-{dead_process_id()}-old"
    aside.mkdir()
    (aside / "file").write_text("previous")
    with pytest.raises(RuntimeError, match="stop"), atomic_directory(tmp_path / "result", overwrite=True):
        raise RuntimeError("stop")
    assert (tmp_path / "result" / "file").read_text() == "previous"


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
