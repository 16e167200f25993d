"""Killed runs continue from their last complete checkpoint and end with the same tensors; other settings are refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rmlora.errors import ConfigError
from rmlora.training.resume import claim_run, last_complete_checkpoint
from tests.helpers.cli import environment, fails, run
from tests.rmlora.training.short_run import assert_equal, words_for


@pytest.mark.parametrize("delays", [(0.0,), (0.3, 0.6), (1.2,)])
def test_a_killed_run_ends_like_an_uninterrupted_one(
    base: Path, data: Path, tmp_path: Path, delays: tuple[float, ...]
) -> None:
    more = ["--dropout", "0.1", "--save-steps", "2", "--mask-mode", "update", "--group-by-length"]
    words = words_for(base, data, tmp_path / "killed", *more)
    assert run(*words_for(base, data, tmp_path / "complete", *more)).code == 0
    run_dir = tmp_path / "killed.run"
    for delay in delays:
        command = [sys.executable, "-m", "rmlora_deploy", *map(str, words)]
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        existing = set(run_dir.glob("checkpoint-*"))
        while process.poll() is None and not set(run_dir.glob("checkpoint-*")) - existing:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if not (tmp_path / "killed").exists():
        done = run(*words)
        assert done.code == 0, done.stderr
    assert_equal(tmp_path / "complete", tmp_path / "killed")


def test_half_written_checkpoints_are_not_resumed_from(base: Path, data: Path, tmp_path: Path) -> None:
    words = words_for(base, data, tmp_path / "adapter")
    assert run(*words).code == 0
    run_dir = tmp_path / "adapter.run"
    complete = last_complete_checkpoint(run_dir)
    assert complete is not None
    state = (complete / "trainer_state.json").read_text()
    (complete / "trainer_state.json").write_text(state[: len(state) // 2])
    earlier = last_complete_checkpoint(run_dir)
    assert earlier != complete and not complete.exists()


def test_another_runs_directory_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    words = words_for(base, data, tmp_path / "adapter")
    assert run(*words).code == 0
    fails(2, "holds an interrupted run with another learning rate", *words, "--overwrite", "--learning-rate", "1e-4")
    assert run(*words, "--overwrite", "--learning-rate", "1e-4", "--no-resume").code == 0


def test_a_directory_with_other_files_is_never_deleted(base: Path, data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    words = [*words_for(base, data, tmp_path / "adapter"), "--run-dir", mine]
    message = "is to hold the checkpoints of this run, but holds other files (thesis.txt): choose another --run-dir"
    for more in ([], ["--no-resume"]):
        fails(2, message, *words, *more)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_a_run_that_was_killed_before_it_began_is_no_hindrance(tmp_path: Path) -> None:
    run_dir, identity = tmp_path / "adapter.run", {"seed": 1}
    (run_dir / ".settings.json.partial-0123456789ab").mkdir(parents=True)
    assert claim_run(run_dir, identity, resume=True) is None
    assert [path.name for path in run_dir.iterdir()] == ["settings.json"]


def test_starting_over_deletes_the_interrupted_run_only(tmp_path: Path) -> None:
    run_dir = tmp_path / "adapter.run"
    claim_run(run_dir, {"seed": 1}, resume=True)
    (run_dir / "checkpoint-3").mkdir()
    with pytest.raises(ConfigError, match="another seed"):
        claim_run(run_dir, {"seed": 2}, resume=True)
    assert (run_dir / "checkpoint-3").exists()
    claim_run(run_dir, {"seed": 2}, resume=False)
    assert [path.name for path in run_dir.iterdir()] == ["settings.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.run"]
