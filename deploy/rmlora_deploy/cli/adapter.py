"""``rmlora-deploy adapter``: add, remove and list the adapters of a bundle."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from rmlora.errors import ConfigError
from rmlora.labels import parse_labels
from rmlora_deploy.bundles.adapters import add_adapter, remove_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.adapter_table import show_adapters
from rmlora_deploy.cli.base_warning import warn_of_other_bundle
from rmlora_deploy.cli.console import json_option, labels_option, make_console, named, print_json
from rmlora_deploy.inspection.bundle_card import write_card

__all__ = ["command"]


@click.group("adapter")
def command() -> None:
    """Add, remove and list the adapters of a bundle exported with --mode branches.

    Adding an adapter takes about a second and needs neither torch nor a new export. The adapter may have any rank and any
    number of labels, but may change only modules for which the graph has branches.

    \b
    Examples:
      rmlora-deploy adapter add both trec-plain=trec-lora
      rmlora-deploy adapter list both --json
      rmlora-deploy adapter remove both trec-plain
    """


@command.command("add")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("adapters", nargs=-1, required=True, metavar="[NAME=]PATH...")
@click.option("--allow-base-mismatch", is_flag=True, help="Add an adapter even if it was made for another base.")
@labels_option
@json_option
def add(bundle: Path, adapters: tuple[str, ...], allow_base_mismatch: bool, labels: str | None, as_json: bool) -> None:
    """Add adapter packages to BUNDLE. An adapter without a NAME gets the name of its directory.

    The graph is run once with each adapter, and one that gives NaN or changes nothing is refused. To compare the
    adapters with PyTorch afterwards, run rmlora-deploy verify.

    \b
    Examples:
      rmlora-deploy adapter add both trec-plain=trec-lora
    """
    console = make_console(as_json=as_json)
    started = time.monotonic()
    names = parse_labels(labels) if labels is not None else None
    opened = Bundle.open(bundle, check_files=False)
    paths = {name: Path(path) for name, path in named(adapters, flag="adapter add").items()}
    warn_of_other_bundle(paths.values(), opened.manifest)
    added = {}
    try:
        for name, path in paths.items():
            added[name] = add_adapter(opened, name, path, allow_base_mismatch=allow_base_mismatch, label_names=names)
            if not as_json:
                console.print(
                    f"Added '{name}' to {bundle}: rank {added[name].rank}, {added[name].bytes / 1e6:.2f} MB, "
                    f"{time.monotonic() - started:.1f} s. To compare it with PyTorch: "
                    f"rmlora-deploy verify {shlex.quote(str(bundle))}"
                )
    finally:
        if added:  # those before one that cannot be added stay
            write_card(opened)
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
    """Remove adapters and their files from BUNDLE.

    \b
    Examples:
      rmlora-deploy adapter remove both trec-plain
    """
    opened = Bundle.open(bundle, check_files=False)
    opened.require_branches()
    names = tuple(dict.fromkeys(names))
    for name in names:  # before any of them is removed
        opened.adapter(name)
    for name in names:
        remove_adapter(opened, name)
    write_card(opened)
    if as_json:
        print_json({"bundle": str(bundle), "removed": list(names), "left": list(opened.adapters)})
    else:
        make_console().print(f"Removed {', '.join(names)} from {bundle}; {len(opened.adapters)} left.")


@command.command("list")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def list_(bundle: Path, as_json: bool) -> None:
    """List the adapters of BUNDLE.

    Shown are their labels, rank and size, and how far their outputs differ from PyTorch's.

    \b
    Examples:
      rmlora-deploy adapter list both --json
    """
    opened = Bundle.open(bundle, check_files=False)
    if opened.mode != "branches":
        raise ConfigError(
            f"{bundle} has its adapter merged: only a bundle exported with --mode branches has a list of adapters."
        )
    if as_json:
        print_json({name: entry.to_dict() for name, entry in opened.adapters.items()})
    else:
        show_adapters(make_console(), opened)
