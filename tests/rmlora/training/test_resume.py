"""Killed runs continue from their last complete checkpoint and end with the same tensors; other settings are refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rmlora.errors import ConfigError
from rmlora.training.resume import _find_best_again, check_run_base, claim_run, last_complete_checkpoint
from rmlora.training.run import _find_checkpoint
from rmlora.training.settings import TrainSettings
from rmlora.training.source_digest import source_digest
from tests.helpers.cli import environment, fails, run
from tests.helpers.rarely import rarely
from tests.rmlora.training.short_run import assert_equal, words_for

IDENTITY = {"rmlora": {"rank": 8}, "data": {"train": "aa", "test": None}}
"""What the settings of every run have."""


@pytest.mark.parametrize("delays", [rarely((0.0,)), (0.4,)])
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


def test_a_finished_run_is_no_hindrance_for_another_that_replaces_it(base: Path, data: Path, tmp_path: Path) -> None:
    words = words_for(base, data, tmp_path / "adapter")
    assert run(*words).code == 0
    again = run(*words, "--overwrite")
    assert again.code == 0 and "had finished with these settings and data: its adapter is written again" in again.stdout
    other = run(*words, "--overwrite", "--learning-rate", "1e-4")
    assert other.code == 0 and "had finished" not in other.stdout and "Continuing" not in other.stdout
    (tmp_path / "adapter").rename(tmp_path / "kept")
    fails(2, "a finished run with another learning rate (0.0001, now 0.001)", *words, "--learning-rate", "1e-3")
    assert run(*words, "--learning-rate", "1e-3", "--no-resume").code == 0


def test_data_that_changed_are_trained_on_and_never_get_the_old_adapter(base: Path, data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text(data.read_text())
    words = words_for(base, mine, tmp_path / "adapter")
    assert run(*words).code == 0
    lines = mine.read_text().splitlines()
    mine.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    done = run(*words, "--overwrite")
    assert done.code == 0 and "had finished" not in done.stdout and "Continuing" not in done.stdout
    assert run(*words_for(base, mine, tmp_path / "anew")).code == 0
    assert_equal(tmp_path / "anew", tmp_path / "adapter")


def test_an_interrupted_run_is_not_continued_on_other_settings_data_or_weights(tmp_path: Path) -> None:
    run_dir, identity = (
        tmp_path / "adapter.run",
        {"seed": 1, "rmlora": {"rank": 8}, "data": {"train": "aa", "test": None}},
    )
    claim_run(run_dir, identity, resume=True)
    for change, message in (
        ({"seed": 2}, r"interrupted run with another seed \(1, now 2\)"),
        ({"rmlora": {"rank": 4}}, r"interrupted run with another rank \(8, now 4\)"),
        ({"data": {"train": "bb", "test": None}}, "interrupted run with other train data"),
        ({"data": {"train": "bb", "test": "cc"}}, "interrupted run with other train and test data"),
    ):
        with pytest.raises(ConfigError, match=message):
            claim_run(run_dir, {**identity, **change}, resume=True, overwrite=True)
    check_run_base(run_dir, "sha256:1")
    check_run_base(run_dir, "sha256:1")
    with pytest.raises(
        ConfigError, match="other weights of the base, which have changed since: start over with --no-resume"
    ):
        check_run_base(run_dir, "sha256:2")


def test_a_folder_has_another_digest_when_a_file_changes_or_moves(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image = tmp_path / "a" / "1.png"
    image.write_bytes(b"one")
    first = source_digest(str(tmp_path))
    image.write_bytes(b"two")
    second = source_digest(str(tmp_path))
    image.rename(tmp_path / "2.png")
    assert len({first, second, source_digest(str(tmp_path)), source_digest(str(tmp_path / "2.png"))}) == 4
    assert source_digest("trec") is None


def test_a_directory_with_other_files_is_never_deleted(base: Path, data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    words = [*words_for(base, data, tmp_path / "adapter"), "--run-dir", mine]
    message = "is to hold the checkpoints of this run, but holds other files (thesis.txt): choose another --run-dir"
    for more in ([], ["--no-resume"]):
        fails(2, message, *words, *more)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("inside", ["adapter", "adapter/run"])
def test_a_run_is_not_kept_where_its_package_will_be(base: Path, data: Path, tmp_path: Path, inside: str) -> None:
    words = [*words_for(base, data, tmp_path / "adapter"), "--run-dir", tmp_path / inside]
    for more in ([], ["--overwrite"]):
        fails(2, "which the finished package replaces as a whole: choose a directory outside it", *words, *more)
    assert not (tmp_path / "adapter").exists()


def test_a_run_that_was_killed_before_it_began_is_no_hindrance(tmp_path: Path) -> None:
    run_dir, identity = tmp_path / "adapter.run", {"seed": 1}
    (run_dir / ".settings.json.partial-0123456789ab").mkdir(parents=True)
    assert claim_run(run_dir, identity, resume=True) is None
    assert [path.name for path in run_dir.iterdir()] == ["settings.json"]


def test_starting_over_deletes_the_interrupted_run_only(tmp_path: Path) -> None:
    run_dir = tmp_path / "adapter.run"
    claim_run(run_dir, {**IDENTITY, "seed": 1}, resume=True)
    (run_dir / "checkpoint-3").mkdir()
    with pytest.raises(ConfigError, match="another seed"):
        claim_run(run_dir, {**IDENTITY, "seed": 2}, resume=True)
    assert (run_dir / "checkpoint-3").exists()
    claim_run(run_dir, {**IDENTITY, "seed": 2}, resume=False)
    assert [path.name for path in run_dir.iterdir()] == ["settings.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.run"]


def test_files_of_others_are_not_taken_for_a_run_because_of_a_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "settings.json").write_text('{"editor.fontSize": 14}')
    for resume in (True, False):
        with pytest.raises(ConfigError, match=r"but holds other files \(settings.json\): choose another --run-dir"):
            claim_run(mine, IDENTITY, resume=resume, overwrite=True)
    (mine / "settings.json").write_text("// no JSON")
    with pytest.raises(ConfigError, match=r"but holds other files \(settings.json\)"):
        claim_run(mine, IDENTITY, resume=False)
    assert (mine / "settings.json").exists()


def test_starting_over_keeps_what_a_user_put_into_the_directory_of_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "adapter.run"
    claim_run(run_dir, IDENTITY, resume=True)
    (run_dir / "notes.txt").write_text("days of work")
    with pytest.raises(ConfigError, match=r"but holds other files \(notes.txt\)"):
        claim_run(run_dir, IDENTITY, resume=False)
    assert (run_dir / "notes.txt").exists()


def test_the_best_checkpoint_of_a_run_that_was_moved_is_found(base: Path, data: Path, tmp_path: Path) -> None:
    more = ["--eval-steps", "2", "--patience", "1", "--epochs", "6"]
    assert run(*words_for(base, data, tmp_path / "first", *more)).code == 0
    (tmp_path / "first.run").rename(tmp_path / "moved.run")
    done = run(*words_for(base, data, tmp_path / "moved", *more))
    assert done.code == 0 and "had finished" in done.stdout, done.stderr
    assert_equal(tmp_path / "first", tmp_path / "moved")


def test_a_run_whose_best_checkpoint_is_missing_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    state = {"best_model_checkpoint": "/elsewhere/checkpoint-2", "best_global_step": 2}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="lacks checkpoint-2, the best checkpoint so far: put it back, or start over"):
        _find_best_again(checkpoint)


def test_a_run_is_not_continued_by_another_number_of_processes(tmp_path: Path) -> None:
    settings = TrainSettings("base", str(tmp_path / "none.csv"), tmp_path / "adapter")

    def start(count: int) -> None:
        alone = SimpleNamespace(is_main_process=True, num_processes=count, wait_for_everyone=lambda: None)
        assert _find_checkpoint(settings, alone, resume=True, overwrite=False) is None

    start(2)
    start(2)
    with pytest.raises(ConfigError, match=r"interrupted run with another number of processes \(2, now 1\)"):
        start(1)
