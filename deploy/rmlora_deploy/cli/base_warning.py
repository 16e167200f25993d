"""The warning about adapters that may have been made for another base, for the commands that put them together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rmlora.base_name import doubtful_base
from rmlora_deploy.bundles.manifest import Manifest
from rmlora_deploy.bundles.sources import find_base_directory
from rmlora_deploy.cli.console import colored, make_console

__all__ = ["warn_of_other_base", "warn_of_other_bundle"]


def warn_of_other_base(adapters: Iterable[Path], base: str, *other_names: str) -> None:
    """Print a line on stderr for the first of ``adapters`` that names another base and has no fingerprint of it.

    Args:
        adapters: directories.
        base: directory, ``.gguf`` file or hub name.
        other_names: of the same base.
    """
    found = ((path, name) for path in adapters if (name := doubtful_base(path, base, *other_names)) is not None)
    for path, name in found:
        make_console(as_json=True).print(
            colored(
                "Warning:",
                "yellow",
                f" {path} was made for '{name}', and the base here is {base}. Nothing in the adapter tells whether both are "
                "the same model: if they are not, the results are wrong.",
            )
        )
        return


def warn_of_other_bundle(adapters: Iterable[Path], manifest: Manifest) -> None:
    """Warn in the same way of adapters for a bundle, whose base is called as its manifest has it, or as on this machine."""
    if manifest.base is not None:
        directory = find_base_directory(manifest)
        warn_of_other_base(adapters, manifest.base.source, *([str(directory)] if directory is not None else []))
