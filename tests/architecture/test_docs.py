"""The documents are current: the generated pages of the command line and of the tasks, and the names in CONTRIBUTING.md."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.helpers.cli import PACKAGES, ROOT, environment

GENERATORS = ROOT / "docs" / "reference"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def check_page(generator: str = "generate_cli.py", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GENERATORS / generator), "--check"],
        capture_output=True,
        text=True,
        env=environment(**more),
        check=False,
    )


def glossary() -> list[str]:
    """Return the names of code that the glossary explains."""
    rows = CONTRIBUTING.partition("## Glossary")[2]
    return re.findall(r"`([A-Za-z_]\w+)`", " ".join(re.findall(r"^\| (.*?) \|", rows, re.MULTILINE)))


def test_the_page_of_the_command_line_is_current() -> None:
    done = check_page()
    assert done.returncode == 0, done.stderr


def test_the_page_of_the_tasks_is_current() -> None:
    done = check_page(generator="generate_tasks.py")
    assert done.returncode == 0, done.stderr


def test_the_page_does_not_depend_on_the_terminal_or_on_keys_in_the_environment() -> None:
    assert check_page(COLUMNS="50", RMLORA_API_KEY="a-key").returncode == 0


def test_the_files_that_contributing_names_exist() -> None:
    named = re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|md))?)`", CONTRIBUTING)
    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).exists() and path != "site/"]


@pytest.mark.parametrize("name", glossary())
def test_the_glossary_explains_names_that_are_in_use(name: str) -> None:
    pattern = re.compile(rf"\b{name}\b")
    files = (path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
    assert any(pattern.search(path.read_text(encoding="utf-8")) for path in files)
