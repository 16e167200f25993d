"""Several seeds: mean and spread, the best as the package, and going on where a command was killed."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest

from rmlora.package import load_package
from tests.helpers.cli import fails, run
from tests.rmlora.training.short_run import assert_equal, words_for


def test_the_best_of_three_seeds_is_kept(base: Path, data: Path, tmp_path: Path) -> None:
    words = words_for(base, data, tmp_path / "adapter", "--test", data, "--epochs", "1", "--seeds", "3", "--seed", "7")
    done = run(*words, "--json")
    assert done.code == 0, done.stderr
    seeds = json.loads(done.stdout)["seeds"]
    assert list(seeds["runs"]) == ["7", "8", "9"]
    losses = [scores["validation"]["loss"] for scores in seeds["runs"].values()]
    assert len(set(losses)) == 3
    assert seeds["validation"]["loss"]["mean"] == pytest.approx(statistics.mean(losses))
    assert seeds["validation"]["loss"]["std"] == pytest.approx(statistics.stdev(losses))
    accuracies = [
        (scores["validation"]["accuracy"], -scores["validation"]["loss"]) for scores in seeds["runs"].values()
    ]
    kept = int(list(seeds["runs"])[accuracies.index(max(accuracies))])
    assert seeds["kept"] == kept
    package = tmp_path / "adapter.run" / f"seed-{kept}" / "package" / "adapter"
    assert_equal(tmp_path / "adapter", package)
    training = load_package(tmp_path / "adapter").metadata["training"]
    assert training["seeds"] == seeds
    assert (training["settings"]["seed"], training["settings"]["split_seed"]) == (kept, 7)
    assert f"Kept seed {kept}: best validation accuracy of 3 seeds" in json.loads((tmp_path / "adapter" / "evaluation.json").read_text())["kept"]  # fmt: skip
    fails(8, "already exists", *words)

    shutil.move(tmp_path / "adapter", tmp_path / "before")  # as if killed in the third run
    shutil.rmtree(tmp_path / "adapter.run" / "seed-9")
    again = run(*words)
    assert again.code == 0, again.stderr
    assert again.stdout.count("had finished with these settings and data") == 2
    assert "over 3 seeds" in again.stdout and "± std" in again.stdout
    assert_equal(tmp_path / "adapter", tmp_path / "before")
    shutil.rmtree(tmp_path / "adapter")
    fails(2, "holds the checkpoints of a finished run with another epochs", *words, "--epochs", "2")


def test_seeds_that_cannot_be_trained_are_refused(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_for(base, data, tmp_path / "adapter", "--epochs", "1")
    fails(2, "seeds must be at least 1", *words, "--seeds", "0")
    assert run(*words).code == 0
    fails(2, "holds the run of a single seed", *words, "--seeds", "2", "--overwrite")
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(
        2,
        "--seeds trains one run after another in one process",
        *words,
        "--seeds",
        "2",
        "--run-dir",
        tmp_path / "other",
    )
