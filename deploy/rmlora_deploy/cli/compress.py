"""``rmlora-deploy compress``: keep an adapter's best directions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from rmlora.adapter import Adapter
from rmlora.package import load_package, save_package
from rmlora.storage import refuse_existing
from rmlora_converters.compress import CompressReport, compress_adapter
from rmlora_converters.derived_card import derived_card
from rmlora_deploy.cli.console import json_option, make_console, print_json

__all__ = ["command"]

_SHOWN = 5


@click.command("compress")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--rank", type=int, help="Directions to keep per module.")
@click.option(
    "--parameters", type=int, help="Parameters to keep in all factors, spent where they keep most of the update."
)
@click.option("--energy", type=float, help="Share of every update's squared norm to keep, such as 0.99.")
@click.option("--refactor", is_flag=True, help="Drop the other directions from the file instead of masking them.")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Package directory to write.")
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
@json_option
def command(
    adapter: Path,
    rank: int | None,
    parameters: int | None,
    energy: float | None,
    refactor: bool,
    output: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Keep the best directions of ADAPTER and report how much of the update the others held.

    Every update is rotated into its singular basis first, so the kept directions are the best of their number. Without
    --rank, --parameters and --energy nothing is lost: only directions that are zero are left out. The other directions
    are masked in rmlora.json, which PEFT does not read: PEFT applies them all. With --refactor they are dropped from
    the file, for PEFT too.

    \b
    Examples:
      rmlora-deploy compress spam --energy 0.99 --refactor --output spam-small
      rmlora-deploy compress spam-mixed --refactor --output spam-exact
    """
    refuse_existing(output, overwrite=overwrite)
    smaller, report = compress_adapter(
        load_package(adapter), rank=rank, parameters=parameters, energy=energy, refactor=refactor
    )
    card = derived_card(output.resolve().name, smaller, _how(adapter.resolve().name, smaller, report))
    save_package(smaller, output, overwrite=overwrite, card=card)
    if as_json:
        print_json({"output": str(output), **asdict(report)})
        return
    _show(report, output)


def _how(name: str, smaller: Adapter, report: CompressReport) -> str:
    """Return how the adapter was made, for its model card."""
    masked = any(module.rank_mask is not None for module in smaller.modules.values())
    note = ", the others masked in rmlora.json, which PEFT does not read: it applies them all" if masked else ""
    return f"the best directions of {name}{note}; ‖lost‖/‖Δ‖ of the update is {report.loss:.2e}"


def _show(report: CompressReport, output: Path) -> None:
    console = make_console()
    table = Table("module", "directions", "kept", "‖lost‖/‖Δ‖", title="Where most was lost")
    for item in report.modules[:_SHOWN]:
        table.add_row(item.module, str(item.before), str(item.after), f"{item.loss:.2e}")
    console.print(table)
    share = report.parameters_after / report.parameters_before
    console.print(
        f"Written to {output}: {report.parameters_after:,} of {report.parameters_before:,} parameters ({share:.0%}).\n"
        f"‖lost‖/‖Δ‖ of the update as a whole: {report.loss:.2e}."
    )
