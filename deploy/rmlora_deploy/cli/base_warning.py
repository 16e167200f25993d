"""The warning about adapters that may have been made for another base, for the commands that put them together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rmlora.base_name import doubtful_base
from rmlora_deploy.bundles.manifest import Manifest
from rmlora_deploy.bundles.sources import doubtful_base_of
from rmlora_deploy.cli.console import colored, make_console

__all__ = ["warn_of_other_base", "warn_of_other_bundle"]


def warn_of_other_base(adapters: Iterable[Path], base: str) -> None:
    """Print a line on stderr for the first of ``adapters`` that names another base and has no fingerprint of it."""
    _warn(((path, doubtful_base(path, base)) for path in adapters), base)


def warn_of_other_bundle(adapters: Iterable[Path], manifest: Manifest) -> None:
    """Warn in the same way of adapters that are added to a bundle."""
    if manifest.base is not None:
        _warn(((path, doubtful_base_of(path, manifest)) for path in adapters), manifest.base.source)


def _warn(found: Iterable[tuple[Path, str | None]], base: str) -> None:
    doubted = next(((path, name) for path, name in found if name is not None), None)
    if doubted is not None:
        make_console(as_json=True).print(
            colored(
                "Warning:",
                "yellow",
                f" {doubted[0]} was made for '{doubted[1]}', and the base here is {base}. Nothing in the adapter tells whether both "
                "are the same model: if they are not, the results are wrong.",
            )
        )
