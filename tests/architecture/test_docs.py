"""The generated page of the command line is current."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.cli import ROOT, environment

GENERATOR = ROOT / "docs" / "reference" / "generate_cli.py"


def check_page(**more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GENERATOR), "--check"], capture_output=True, text=True, env=environment(**more), check=False
    )


def test_the_page_of_the_command_line_is_current() -> None:
    done = check_page()
    assert done.returncode == 0, done.stderr


def test_the_page_does_not_depend_on_the_terminal_or_on_keys_in_the_environment() -> None:
    assert check_page(COLUMNS="50", RMLORA_API_KEY="a-key").returncode == 0
