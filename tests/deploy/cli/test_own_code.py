"""Code that comes with a base runs with --trust-remote-code only, whatever is typed or piped into the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import Finished, environment, text_data
from tests.helpers.own_code import make_own_code
from tests.helpers.rarely import rarely

FLAG = "--trust-remote-code"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("own-code")
    make_own_code(directory)
    text_data(directory / "data.jsonl")
    made = command(directory, directory / "mark", *export(directory, directory / "bundle"), FLAG)
    assert made.code == 0, made.stderr
    return directory


def command(directory: Path, mark: Path, *words: str | Path) -> Finished:
    """Run a command with "y" on its stdin; code of the base writes ``mark`` when it runs."""
    mark.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "rmlora_deploy", *map(str, words)],
        capture_output=True, text=True, input="y\n" * 9, check=False,
        env=environment(MARK=str(mark), HF_MODULES_CACHE=str(mark.parent / "modules"), RMLORA_CACHE=str(directory / "cache")),
    )  # fmt: skip
    return Finished(done.returncode, done.stdout, done.stderr)


def export(directory: Path, output: Path) -> list[str | Path]:
    return ["export", directory / "base", "-a", directory / "adapter", "-o", output]


@pytest.mark.parametrize(
    "name", [rarely("export"), rarely("export branches"), rarely("verify"), "predict", rarely("bench"), rarely("train")]
)
def test_it_runs_with_the_flag_only(name: str, sources: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    words = {
        "export": export(sources, output),
        "export branches": [*export(sources, output), "--mode", "branches"],
        "verify": ["verify", sources / "bundle", "--no-write"],
        "predict": ["predict", sources / "bundle", "w1 w2"],
        "bench": ["bench", sources / "bundle", "--engine", "torch", "--threads", "1", "--batch", "1", "--length", "8",
                  "--rounds", "1", "--seconds", "0.01", "--provider", "cpu"],
        "train": ["train", "--base", sources / "base", "--train", sources / "data.jsonl", "--output", output,
                  "--epochs", "1", "--rank", "2", "--active-rank", "1"],
    }[name]  # fmt: skip
    refused = command(sources, tmp_path / "mark", *words)
    assert refused.code == 3, refused.stderr
    assert "Traceback" not in refused.stderr
    assert FLAG in refused.stderr and "code of its own" in refused.stderr
    assert not (tmp_path / "mark").exists() and not output.exists()
    allowed = command(sources, tmp_path / "mark", *words, FLAG)
    assert allowed.code == 0, allowed.stderr
    assert (tmp_path / "mark").exists()


def test_answers_with_the_code_are_those_of_the_bundle(sources: Path, tmp_path: Path) -> None:
    done = command(sources, tmp_path / "mark", "predict", sources / "bundle", "w1 w2", "--json", FLAG)
    assert json.loads(done.stdout)[0]["answers"]["bundle"][0]["label"] in ("red", "green", "blue")
