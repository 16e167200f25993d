"""``rmlora-deploy inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from deploy.bundle import Bundle
from deploy.cli.console import json_option, make_console, print_json
from deploy.cli.verify import show_report
from deploy.describe import describe_adapter, describe_bundle, fit_to_base, kind_of
from deploy.spectrum_plot import plot_spectra
from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, ConfigError
from rmlora.package import load_package

__all__ = ["command"]


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--compare", multiple=True, type=click.Path(path_type=Path), help="Other adapters to set beside it; repeatable."
)
@click.option("--base", help="Check that the adapter fits this base (exit code 3 if not).")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG of the singular values to write.")
@click.option("--all-modules", is_flag=True, help="List every module.")
@json_option
def command(
    path: Path, compare: tuple[Path, ...], base: str | None, plot: Path | None, all_modules: bool, as_json: bool
) -> None:
    r"""Show an adapter or a bundle: sizes, settings, spectrum, verification.

    The spectrum tells the intrinsic dimension of each update: how many directions it really uses. Stable rank
    weighs directions by energy, effective rank by entropy; both are at most the rank.

    \b
    Examples:
      rmlora-deploy inspect spam --compare spam-plain-lora --plot spectrum.png
      rmlora-deploy inspect spam --base ./MiniLM
      rmlora-deploy inspect spam-bundle --json
    """
    console = make_console(as_json=as_json)
    if kind_of(path) == "bundle":
        if compare or base or plot:
            raise ConfigError("--compare, --base and --plot are for adapters, and this is a bundle: leave them out.")
        described = describe_bundle(Bundle.open(path))
        if as_json:
            print_json(described)
        else:
            _show_bundle(console, described)
        return
    adapters = {item.name: load_package(item) for item in (path, *compare)}
    pairs = {name: describe_adapter(adapter) for name, adapter in adapters.items()}
    if plot:
        plot_spectra({name: spectrum for name, (_, spectrum) in pairs.items()}, plot)
    result = pairs[path.name][0]
    fit = fit_to_base(adapters[path.name], Checkpoint(resolve_base(base))) if base else None
    if as_json:
        others = {name: described for name, (described, _) in pairs.items() if name != path.name}
        print_json({**result, **({"compared": others} if others else {}), **({"fit": fit} if fit else {})})
    else:
        _show_adapter(console, result, all_modules=all_modules)
        _show_spectra(console, {name: described for name, (described, _) in pairs.items()})
        if fit:
            console.print(_fit_line(fit))
    if fit and not fit["fits"]:
        raise AdapterError(f"{path} does not fit the base {base}: {_fit_line(fit)}")


def _show_adapter(console: Console, value: dict[str, Any], *, all_modules: bool) -> None:
    console.print(f"[bold]{value['path']}[/]: {value['modules_adapted']} modules, {value['parameters']:,} parameters")
    rows = {
        "task": value["task"],
        "labels": ", ".join(value["labels"]) if value["labels"] else None,
        "base": value["base_model"],
        "saved whole": ", ".join(value["saved_tensors"]) or None,
    }
    settings = value["settings"] or {}
    if settings:
        rows["RM-LoRA"] = (
            f"rank {settings['rank']}, {settings['active_rank']} move, alpha {settings['alpha']:g}, orth_weight "
            f"{settings['orth_weight']:g}, masks {settings['mask_sharing']}"
        )
    for split in ("validation", "test"):
        if scores := (value["metrics"] or {}).get(split):
            rows[split] = f"accuracy {scores['accuracy']:.4f}, macro F1 {scores['macro_f1']:.4f}"
    for name, text in rows.items():
        if text:
            console.print(f"  {name}: {text}")
    if all_modules:
        table = Table("module", "in → out", "rank", "scale", "σ₁", "stable rank", "effective rank")
        for row in value["modules"]:
            rank = str(row["rank"]) if row["rank"] == row["active_rank"] else f"{row['active_rank']} of {row['rank']}"
            table.add_row(
                row["module"],
                f"{row['in']} → {row['out']}",
                rank,
                f"{row['scale']:g}",
                f"{row['largest_singular_value']:.3f}",
                f"{row['stable_rank']:.2f}",
                f"{row['effective_rank']:.2f}",
            )
        console.print(table)


def _show_spectra(console: Console, described: dict[str, dict[str, Any]]) -> None:
    table = Table(
        "mean over modules", "numerical rank", "stable rank", "effective rank", "whole adapter, effective rank"
    )
    for name, value in described.items():
        spectrum = value["spectrum"]
        table.add_row(
            name,
            f"{spectrum['numerical_rank']:.2f}",
            f"{spectrum['stable_rank']:.2f}",
            f"{spectrum['effective_rank']:.2f}",
            f"{spectrum['joint']['effective_rank']:.1f}",
        )
    console.print(table)


def _fit_line(fit: dict[str, Any]) -> str:
    if fit["problems"]:
        first = fit["problems"][0]
        return f"{len(fit['problems'])} modules do not fit, the first is {first['module']} ({first['problem']})."
    if fit["fingerprint_matches"] is None:
        return f"All {fit['modules_found']} modules fit the base; the adapter records no fingerprint to compare."
    if fit["fingerprint_matches"]:
        return f"All {fit['modules_found']} modules fit, and it is the base the adapter was made for."
    return "the shapes fit, but the weights are not those the adapter was made for."


def _show_bundle(console: Console, value: dict[str, Any]) -> None:
    model = value["model"]
    console.print(
        f"[bold]{value['path']}[/]: {value['mode']} {value['task']}, {value['precision']}, {model['bytes'] / 1e6:.1f} MB"
    )
    operators = ", ".join(f"{count} {name}" for name, count in list(model["operators"].items())[:8])
    console.print(f"  graph: opset {model['opset']}, {value['optimisation']['level']}; {operators}")
    for item in (*model["inputs"], *model["outputs"]):
        console.print(f"  {item['name']}: {item['dtype']} \\[{', '.join(map(str, item['shape']))}]")
    console.print(f"  labels: {', '.join(value['labels'])}")
    console.print(f"  made from {value['adapter']['source']} on {value['base']['source']}")
    files = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in value["sizes"].items())
    console.print(f"  files: {files}")
    if value["verification"]:
        show_report(console, value["verification"])
    else:
        console.print("  not verified")
