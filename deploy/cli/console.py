"""What every command shares of the terminal: one console, and machine-readable output on request."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

__all__ = ["json_option", "make_console", "print_json"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, nothing else.")
"""``--json``; progress and notes then go to stderr."""


def make_console(*, as_json: bool = False) -> Console:
    """Return a console on stdout, or on stderr when stdout is reserved for JSON."""
    return Console(stderr=as_json, highlight=False)


def print_json(value: Any) -> None:
    """Write ``value`` as JSON to stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
