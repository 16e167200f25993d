"""``rmlora-deploy mix``: add up adapters, each with a weight."""

from __future__ import annotations

from pathlib import Path

import click

from rmlora.errors import ConfigError
from rmlora.package import load_package, save_package
from rmlora.storage import refuse_existing
from rmlora.wording import counted
from rmlora_converters.derived_card import derived_card
from rmlora_converters.mix import mix_adapters
from rmlora_deploy.cli.console import json_option, make_console, print_json

__all__ = ["command"]


@click.command("mix")
@click.argument("adapters", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--weights", help="One number per adapter, separated by commas.  [default: equal shares that sum to 1]")
@click.option(
    "--head-from", type=click.Path(path_type=Path), help="Adapter to take head, task, labels and prompt format from."
)
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Package directory to write.")
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
@click.option("--allow-base-mismatch", is_flag=True, help="Mix adapters even if they were made for different bases.")
@json_option
def command(
    adapters: tuple[Path, ...],
    weights: str | None,
    head_from: Path | None,
    output: Path,
    overwrite: bool,
    allow_base_mismatch: bool,
    as_json: bool,
) -> None:
    """Add up ADAPTERS, each with a weight, and write the sum as one adapter.

    The sum is exact: its rank is the sum of the ranks, and rmlora-deploy compress then finds the smallest rank that
    holds it. A negative weight subtracts an adapter. Heads cannot be added up: if they differ, choose one with
    --head-from, as also if one language model was trained on chats and another on prompts as they stand.

    \b
    Example:
      rmlora-deploy mix spam spam-lora --weights 0.7,0.3 --head-from spam --output spam-mixed
    """
    refuse_existing(output, overwrite=overwrite)
    if head_from is not None and head_from not in adapters:
        raise ConfigError(
            f"--head-from {head_from} is not one of the adapters: name one of {', '.join(map(str, adapters))}."
        )
    shares = _numbers(weights, len(adapters))
    mixed = mix_adapters(
        [load_package(path) for path in adapters],
        shares,
        head=None if head_from is None else adapters.index(head_from),
        allow_base_mismatch=allow_base_mismatch,
    )
    made = " + ".join(f"{share:g} · {path.resolve().name}" for path, share in zip(adapters, shares, strict=True))
    card = derived_card(output.resolve().name, mixed, f"the sum {made}")
    save_package(mixed, output, overwrite=overwrite, card=card)
    ranks = [module.rank for module in mixed.modules.values()]
    if as_json:
        print_json(
            {"output": str(output), "modules": len(ranks), "largest_rank": max(ranks), "parameters": mixed.parameters}
        )
        return
    make_console().print(
        f"Mixed {counted(len(adapters), 'adapter')} into {output}: {counted(len(ranks), 'module')} of rank up to {max(ranks)}, "
        f"{counted(mixed.parameters, 'parameter')}."
    )


def _numbers(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1 / count] * count
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {text} is not a list of numbers: write it like 0.7,0.3.") from None
