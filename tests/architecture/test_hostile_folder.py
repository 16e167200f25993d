"""Files of the user's own never replace modules: every command runs in a folder full of files named like them.

`python -m` and Ray put the working directory first on the module search path, where ``click.py`` hides the package of
that name. Each file here leaves a marker and raises when it is executed, so both an import that fails and one whose
failure is swallowed are noticed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from rmlora_deploy.cli import cli
from tests.helpers.cli import CONSOLE_SCRIPT, WORDS, environment, text_base, text_data
from tests.helpers.rarely import rarely
from tests.helpers.servers import ask, classify, served_by_command

NAMES = (
    "deploy", "converters", "rmlora", "rmlora_converters", "rmlora_deploy", "click", "rich", "numpy", "onnx", "onnx_ir",
    "onnxruntime", "safetensors", "torch", "transformers", "peft", "datasets", "fastapi", "uvicorn", "aiohttp", "ray",
)  # fmt: skip
"""Modules that the commands import, and the names that our packages once had."""

HOSTILE = """
from pathlib import Path
Path(__file__).with_suffix(".executed").touch()
raise RuntimeError(f"{__file__} was executed")
"""

BRIEF_TRAINING = ("--rank", "2", "--epochs", "1", "--batch-size", "8")
BRIEF_BENCH = ("--batch", "1", "--length", "4", "--threads", "1", "--rounds", "1", "--seconds", "0.01", "--warmup", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A working directory with a hostile file for each of :data:`NAMES`; none of them may be executed."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    yield tmp_path
    assert executed(tmp_path) == []


def executed(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.executed"))


def run_in(folder: Path, *words: str | Path, launcher: tuple[str | Path, ...] = (), **more: str) -> str:
    """Run the installed command in ``folder`` and return what it wrote to stdout; it must succeed."""
    done = subprocess.run(
        [*map(str, launcher), str(CONSOLE_SCRIPT), *map(str, words)],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def subcommands() -> list[tuple[str, ...]]:
    """Return the words of every command, the groups' own included."""
    found: list[tuple[str, ...]] = [()]
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        found += [(name,), *((name, part) for part in getattr(command, "commands", ()))]
    return found


def test_the_files_are_executed_where_the_folder_is_searched(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    for words in (["-c", "import click"], ["-m", "rmlora_deploy.bench.worker"]):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment(), capture_output=True, check=False
        )
        assert done.returncode != 0
    assert executed(tmp_path) == ["click", "rmlora_deploy"]


@pytest.mark.parametrize("words", subcommands(), ids=" ".join)
def test_help(words: tuple[str, ...], folder: Path) -> None:
    assert run_in(folder, *words, "--help").startswith("Usage: rmlora-deploy")


@pytest.mark.rare
def test_adapters_are_inspected_mixed_compressed_and_merged(folder: Path, served: dict[str, Path]) -> None:
    source = served["many"].parent
    assert json.loads(run_in(folder, "inspect", source / "one", "--plot", "one.png", "--json"))
    run_in(folder, "mix", source / "one", source / "one", "-o", "mixed")
    run_in(folder, "compress", "mixed", "--refactor", "-o", "compressed")
    run_in(folder, "merge", source / "base", "compressed", "-o", "merged")
    assert (folder / "merged" / "model.safetensors").is_file()
    assert (folder / "one.png").is_file()


@pytest.mark.rare
def test_bundles_are_exported_verified_and_used(folder: Path, served: dict[str, Path]) -> None:
    source = served["many"].parent
    run_in(folder, "export", source / "base", "--mode", "branches", "-a", source / "one", "-o", "bundle")
    run_in(folder, "adapter", "add", "bundle", f"more={source / 'two'}")
    assert "more" in run_in(folder, "adapter", "list", "bundle")
    run_in(folder, "adapter", "remove", "bundle", "more")
    run_in(folder, "verify", "bundle", "--reference-only")
    run_in(folder, "inspect", "bundle")
    (answer,) = json.loads(run_in(folder, "predict", "bundle", WORDS[0], "--json"))
    assert answer["answers"]["one"]


@pytest.mark.rare
def test_bench_starts_workers_that_do_not_search_the_folder(folder: Path, served: dict[str, Path]) -> None:
    source = served["many"].parent
    run_in(folder, "export", source / "base", "-a", source / "one", "-o", "bundle", "--no-verify")
    words = ("bench", "bundle", *BRIEF_BENCH, "--plot", "bench.png", "--provider", "cpu", "--engine", "onnx,torch")
    measured = json.loads(run_in(folder, *words, "--json"))
    assert {row["engine"] for row in measured["rows"]} == {"onnx", "torch"}


@pytest.mark.parametrize("processes", [1, rarely(2)])
def test_train(processes: int, folder: Path) -> None:
    """Several processes start by ``torchrun --no-python``, which runs the command itself and not a module."""
    text_base(folder / "base")
    text_data(folder / "data.jsonl", rows=24)
    torchrun = CONSOLE_SCRIPT.with_name("torchrun")
    launcher = (torchrun, "--standalone", "--nproc-per-node", "2", "--no-python") if processes == 2 else ()
    output = run_in(
        folder, "train", "--base", "base", "--train", "data.jsonl", "-o", "adapter", *BRIEF_TRAINING, launcher=launcher
    )
    assert output.count("Adapter written to") == 1
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_a_server_is_started_asked_and_loaded(folder: Path, served: dict[str, Path]) -> None:
    with served_by_command(f"many={served['many']}", cwd=folder) as server:
        assert ask(server.url, "/healthz").status == 200
        assert len(classify(server.url, "one", WORDS[0])[0]) == 2
        figures = run_in(
            folder, "loadtest", server.url, "--seconds", "0.5", "--warmup", "0", "--clients", "2", "--json"
        )
        assert json.loads(figures)["requests"] > 0


@pytest.mark.rare
def test_replicas_on_ray(folder: Path, served: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"RAY_TMPDIR": str(tmp_path_factory.getbasetemp())}
    with served_by_command(f"many={served['many']}", "--ray", "--replicas", "2", cwd=folder, **settings) as server:
        assert ask(server.url, "/healthz").status == 200
        for _ in range(8):
            assert len(classify(server.url, "one", WORDS[0])[0]) == 2
