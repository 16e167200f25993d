"""The command line as a whole: help that teaches, mistakes that end in one line, interrupts that end quietly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rmlora import __version__
from rmlora.errors import ConfigError, RMLoRAError
from rmlora_deploy.cli import cli, main
from rmlora_deploy.cli.console import by_adapter
from tests.helpers.cli import environment, run, run_process
from tests.helpers.handmade import word_bundle

COMMANDS = sorted(cli.list_commands(None))  # type: ignore[arg-type]


def test_the_first_page_shows_every_command_and_exit_code() -> None:
    done = run("--help")
    assert done.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE), name
    codes = {error.exit_code for error in _all_errors(RMLoRAError)} - {1}
    assert {int(code) for code in re.findall(r"\b(\d) (?:a|un|an|out|failed)", done.stdout)} >= codes


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_teaches(name: str) -> None:
    done = run(name, "--help")
    assert done.code == 0
    assert re.search(rf"Examples?:\n +rmlora-deploy {name} ", done.stdout), "no example"
    assert "\\b" not in done.stdout, "the marker that keeps the layout is shown instead of obeyed"
    assert "--json" in done.stdout or name == "serve"  # whose output is its log, in JSON
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"
            assert parameter.help.strip()[-1] in ".]" or "…" in parameter.help, parameter.help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_the_help_parses(name: str) -> None:
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    commands = [command, *getattr(command, "commands", {}).values()]
    parameters = [parameter for item in commands for parameter in item.params]
    known = {flag for parameter in parameters for flag in parameter.opts + parameter.secondary_opts}
    for line in re.findall(rf"^ +rmlora-deploy {name} (.*)$", run(name, "--help").stdout, re.MULTILINE):
        for flag in re.findall(r"(?<!\S)--?[a-z][\w-]*", line):
            assert flag in known, f"{name}: the example uses {flag}"


def test_version() -> None:
    assert __version__ in run("--version").stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["deploy"], "No such command 'deploy'"),
        (["bench"], "Missing argument 'BUNDLE'"),
        (["bench", "x", "--fast"], "No such option"),
        (["predict", "x", "--top", "0"], "'--top'"),
        (["predict", "x", "--top", "many"], "'--top'"),
        (["export", "x", "--precision", "int3"], "int3"),
    ],
)
def test_wrong_words_end_with_usage_and_code_2(words: list[str], named: str) -> None:
    done = run(*words)
    assert done.code == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("error", [RMLoRAError, *RMLoRAError.__subclasses__()])
def test_the_class_of_an_error_decides_the_exit_code(
    error: type[RMLoRAError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("something is wrong: do this.")

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == error.exit_code
    assert capsys.readouterr().err == "Error: something is wrong: do this.\n"


def test_an_unreadable_file_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "secret.json")

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 8
    assert capsys.readouterr().err == "Error: secret.json: Permission denied.\n"


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path / "words")
    process = subprocess.Popen(
        [sys.executable, "-m", "rmlora_deploy", "bench", str(bundle), "--seconds", "60", "--threads", "1", "--length", "8",
         "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not _children(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the worker is told too
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip().splitlines()[-1] == "Error: Interrupted."
    assert "Traceback" not in stderr
    assert not stdout


def test_a_closed_pipe_ends_the_command_quietly(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path / "words")
    (tmp_path / "texts").write_text("w0 w1\n" * 5000)
    process = subprocess.Popen(
        [sys.executable, "-m", "rmlora_deploy", "predict", str(bundle), "--file", str(tmp_path / "texts"), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert not stderr


def test_json_is_the_only_output_on_stdout(tmp_path: Path) -> None:
    done = run_process("inspect", word_bundle(tmp_path / "words"), "--json")
    assert json.loads(done.stdout)["kind"] == "bundle"


def _all_errors(error: type[RMLoRAError]) -> set[type[RMLoRAError]]:
    return {error}.union(*(_all_errors(child) for child in error.__subclasses__()))


def _children(pid: int) -> list[str]:
    """Return the pids of a process's children."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_single_adapters_data_needs_no_name() -> None:
    assert by_adapter(["a/x=1.csv"], ["one"], flag="--data") == {"one": "a/x=1.csv"}
    assert by_adapter(["one=1.csv"], ["one"], flag="--data") == {"one": "1.csv"}
    assert by_adapter(["two=1.csv"], ["one"], flag="--data") == {"two": "1.csv"}  # refused by name where it is used
    assert by_adapter(["one=1.csv", "data/two"], ["one", "two"], flag="--data") == {"one": "1.csv", "two": "data/two"}
    with pytest.raises(ConfigError, match="--data a/x=1.csv does not say .* The names are one, two"):
        by_adapter(["a/x=1.csv"], ["one", "two"], flag="--data")
