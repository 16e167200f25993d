"""The warning about adapters that may have been made for another base, for the commands that put them together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rmlora.base_name import doubtful_base
from rmlora_deploy.cli.console import colored, make_console

__all__ = ["warn_of_other_base"]


def warn_of_other_base(adapters: Iterable[Path], base: str) -> None:
    """Print a line on stderr for the first of ``adapters`` that names another base and has no fingerprint of it."""
    found = ((path, name) for path in adapters if (name := doubtful_base(path, base)) is not None)
    for path, name in found:
        make_console(as_json=True).print(
            colored(
                "Warning:",
                "yellow",
                f" {path} was made for '{name}', and the base given is {base}. Nothing in the adapter tells whether both are "
                "the same model: if they are not, the results are wrong.",
            )
        )
        return
