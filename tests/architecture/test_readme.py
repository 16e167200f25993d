"""The README is true: its first program runs as it stands, and its commands, flags and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from rmlora_deploy.cli import cli
from tests.helpers.cli import ROOT, text_base, text_data

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    shown = "\n".join(blocks("console")).replace("\\\n", " ")
    return [
        line.partition("#")[0].removeprefix("$ ") for line in shown.splitlines() if line.startswith("$ rmlora-deploy")
    ]


def test_five_lines_lead_from_data_to_a_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text_base(tmp_path / "build" / "demo" / "MiniLM")
    (tmp_path / "build" / "demo" / "data" / "sms").mkdir(parents=True)
    text_data(tmp_path / "build" / "demo" / "data" / "sms" / "train.jsonl", rows=60)
    monkeypatch.chdir(tmp_path)
    program = blocks("python")[0]
    assert len([line for line in program.splitlines() if line]) <= 5
    exec(compile(program, "README.md", "exec"), {})  # noqa: S102 - the README is the thing under test
    assert capsys.readouterr().out.strip().splitlines()[-1] in {"red", "green", "blue"}


@pytest.mark.parametrize("command", commands())
def test_every_command_has_these_flags(command: str) -> None:
    words = shlex.split(command)[1:]
    group: click.Command = cli
    context = click.Context(cli)
    while isinstance(group, click.Group):
        name = words.pop(0)
        found = group.get_command(context, name)
        assert found is not None, f"there is no command '{name}'"
        group = found
    group.make_context(command, words)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
