"""Write docs/reference/cli.md from the help texts of the commands; with ``--check`` only say whether it is current.

python docs/reference/generate_cli.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from generated_page import write_or_check

from rmlora_deploy.cli import cli

__all__ = ["main", "render"]

PAGE = Path(__file__).with_name("cli.md")
PROGRAM = "rmlora-deploy"
WIDTH = 100
"""Columns of every help text, whatever terminal this runs in."""

INTRODUCTION = """\
# Command line

Every help text of the command line, as `--help` prints it. This page is generated: change the help text in the command's
file under `deploy/rmlora_deploy/cli/`, then run `python docs/reference/generate_cli.py`.
"""


def render() -> str:
    """Return the whole page."""
    return "\n".join([INTRODUCTION, *sections(cli, PROGRAM, None, 2)])


def sections(command: click.Command, name: str, parent: click.Context | None, level: int) -> Iterator[str]:
    """Yield the section of a command, then those of its subcommands, one heading level lower below the top."""
    context = command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    )
    help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"{'#' * level} {context.command_path}\n\n```text\n{help_text}\n```\n"
    if isinstance(command, click.Group):
        for subcommand_name in command.list_commands(context):
            subcommand = command.get_command(context, subcommand_name)
            assert subcommand is not None, f"{subcommand_name} is listed and does not exist"
            yield from sections(subcommand, subcommand_name, context, level if parent is None else level + 1)


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` return 1 if it is out of date."""
    return write_or_check(PAGE, render(), Path(__file__), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
