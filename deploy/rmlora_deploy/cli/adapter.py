"""``rmlora-deploy adapter``."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmlora.errors import ConfigError
from rmlora_deploy.bundles.adapters import add_adapter, remove_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.console import json_option, make_console, named, print_json

__all__ = ["command", "show_adapters"]


@click.group("adapter")
def command() -> None:
    """Add, remove and list the adapters of a bundle made with --mode branches.

    Adding takes about a second and needs neither torch nor a new export: the adapter may change the modules for which
    the graph has branches, with any rank and any number of labels.

    \b
    Examples:
      rmlora-deploy adapter add both movies=./movies-adapter
      rmlora-deploy adapter list both --json
      rmlora-deploy adapter remove both movies
    """


@command.command("add")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, required=True, metavar="[NAME=]PATH...")
@click.option("--allow-base-mismatch", is_flag=True, help="Add it even if it was made for another base.")
@json_option
def add(bundle: Path, adapters: tuple[str, ...], allow_base_mismatch: bool, as_json: bool) -> None:
    """Add adapter packages to BUNDLE; without a NAME one is called after its directory.

    Each is tried on the bundle's own inputs before it is listed. rmlora-deploy verify compares it with PyTorch.

    \b
    Examples:
      rmlora-deploy adapter add both movies=./movies-adapter
    """
    console = make_console(as_json=as_json)
    started = time.monotonic()
    opened = Bundle.open(bundle, check_files=False)
    wanted = named(adapters, flag="adapter add")
    added = {}
    for name, path in wanted.items():
        added[name] = add_adapter(opened, name, Path(path), allow_base_mismatch=allow_base_mismatch)
        if not as_json:
            console.print(
                f"Added '{escape(name)}' to {bundle}: rank {added[name].rank}, {added[name].bytes / 1e6:.2f} MB, "
                f"{time.monotonic() - started:.1f} s. To compare it with PyTorch: rmlora-deploy verify {bundle}"
            )
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "added": {name: entry.to_dict() for name, entry in added.items()},
                "seconds": round(time.monotonic() - started, 2),
            }
        )


@command.command("remove")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
def remove(bundle: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Take adapters out of BUNDLE, files and all.

    \b
    Examples:
      rmlora-deploy adapter remove both movies
    """
    opened = Bundle.open(bundle, check_files=False)
    for name in names:
        remove_adapter(opened, name)
    if as_json:
        print_json({"bundle": str(bundle), "removed": list(names), "left": list(opened.adapters)})
    else:
        make_console().print(f"Removed {', '.join(map(escape, names))} from {bundle}; {len(opened.adapters)} left.")


@command.command("list")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def list_(bundle: Path, as_json: bool) -> None:
    """List the adapters of BUNDLE: labels, rank, size, and how far they are from PyTorch.

    \b
    Examples:
      rmlora-deploy adapter list both --json
    """
    opened = Bundle.open(bundle, check_files=False)
    if opened.mode != "branches":
        raise ConfigError(f"{bundle} has its adapter merged: only bundles of --mode branches have a list.")
    if as_json:
        print_json({name: entry.to_dict() for name, entry in opened.adapters.items()})
    else:
        show_adapters(make_console(), opened)


def show_adapters(console: Console, bundle: Bundle) -> None:
    """Print a table of the adapters of ``bundle``."""
    if not bundle.adapters:
        console.print("No adapters: add one with  rmlora-deploy adapter add.")
        return
    report = bundle.manifest.verification
    verified = (report.adapters or {}) if report is not None else {}
    table = Table("adapter", "labels", "rank", "modules", "MB", "differs from PyTorch by")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, entry in bundle.adapters.items():
        labels = ", ".join(entry.labels[:6]) + (" …" if len(entry.labels) > 6 else "")
        measured = f"{verified[name].onnx.max_relative_error:.1e}" if name in verified else "not verified"
        table.add_row(
            escape(name),
            escape(labels),
            str(entry.rank),
            str(entry.modules),
            f"{entry.bytes / 1e6:.2f}",
            measured,
        )
    console.print(table)
