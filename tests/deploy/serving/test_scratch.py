"""Temporary directories of servers: private, deleted in the end, and after a kill by the next server."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from rmlora_deploy.serving.scratch import Scratch
from tests.helpers.cli import CONSOLE_SCRIPT, environment
from tests.helpers.handmade import word_bundle
from tests.helpers.servers import served_by_command


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


def test_it_is_private_and_leaves_nothing(temporary: Path) -> None:
    with Scratch() as one, Scratch() as two:
        assert one.path != two.path and one.path.is_dir() and two.path.is_dir()
        (home,) = temporary.iterdir()
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        (one.path / "file").write_text("x")
    assert not list(temporary.iterdir())
    del one, two
    abandoned = Scratch()
    path = abandoned.path
    del abandoned
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no owners")
def test_a_directory_of_somebody_else_is_not_used(temporary: Path) -> None:
    home = temporary / f"rmlora-serve-{os.getuid()}"
    home.mkdir(mode=0o755)  # others could look into it
    with Scratch() as scratch:
        assert home not in scratch.path.parents
    home.rmdir()
    home.symlink_to(temporary.parent)
    with Scratch() as scratch:
        assert temporary.parent / ".files" not in scratch.path.parents and home not in scratch.path.parents
    assert list(temporary.iterdir()) == [home]


def test_what_a_killed_server_left_is_deleted_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    words = word_bundle(tmp_path / "words")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (temporary / "other").write_text("x")

    def places() -> set[Path]:
        return set(temporary.glob("rmlora-serve-*/.files.partial-*"))

    with served_by_command(words, TMPDIR=str(temporary)) as living:
        (kept,) = places()
        with served_by_command(words, TMPDIR=str(temporary)) as killed:
            (left,) = places() - {kept}
            assert killed.process is not None
            killed.process.send_signal(signal.SIGKILL)
            killed.process.wait(30)
        assert left.is_dir()
        with served_by_command(words, TMPDIR=str(temporary)):
            assert not left.exists() and kept.is_dir() and len(places()) == 2
        assert living.process is not None and living.process.poll() is None
    assert not list(temporary.glob("rmlora-*")) and (temporary / "other").is_file()


def test_a_server_that_is_stopped_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    words = word_bundle(tmp_path / "words")
    for delay in (0.0, 0.05, 0.2):
        command = [CONSOLE_SCRIPT, "serve", words, "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(TMPDIR=str(tmp_path)))
        assert process.stderr is not None and "opening" in process.stderr.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) in (0, 143) and "Traceback" not in rest, rest
        assert not list(tmp_path.glob("rmlora-*"))
