"""``rmlora-deploy inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rmlora.adapter import Adapter
from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import ConfigError, InputError
from rmlora.package import CONFIG_FILE, load_package
from rmlora.spectrum import AdapterSpectrum, adapter_spectrum
from rmlora_deploy.bundles.bundle import MANIFEST_FILE, Bundle
from rmlora_deploy.cli.adapter import show_adapters
from rmlora_deploy.cli.console import json_option, make_console, print_json, unique_names
from rmlora_deploy.cli.report_table import show_report
from rmlora_deploy.inspection.adapter_report import describe_adapter
from rmlora_deploy.inspection.base_fit import Fit, fit_to_base, require_fit
from rmlora_deploy.inspection.bundle_report import describe_bundle
from rmlora_deploy.inspection.spectrum_plot import plot_spectra
from rmlora_deploy.plots import check_plot_path

__all__ = ["command"]

_SHOWN = 12
_MEASURES = ("numerical", "stable", "effective")


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--base", help="Check that the adapter fits this base: a directory, a .gguf file or a hub name.")
@click.option(
    "--compare",
    "others",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Adapter to show beside this one; repeatable.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Image of the singular values: .png, .svg or .pdf.")
@click.option("--all", "show_all", is_flag=True, help=f"List every module, not only the first {_SHOWN}.")
@json_option
def command(
    path: Path, base: str | None, others: tuple[Path, ...], plot: Path | None, show_all: bool, as_json: bool
) -> None:
    """Show what PATH holds: an adapter directory or a bundle.

    Of an adapter: sizes, settings, metrics, and how many dimensions each update s·BA really uses. The numerical rank
    counts its singular values that are not zero, the stable rank weighs them by energy, the effective rank is the
    exponential of their entropy; RM-LoRA is meant to hold the last two above plain LoRA's (--compare shows it). With
    --base every module is looked up there, and an adapter that does not fit ends with exit code 3. Of a bundle:
    files, precision, operators, inputs and outputs, and what verification measured. Needs no torch.

    \b
    Examples:
      rmlora-deploy inspect spam-adapter --base ./MiniLM
      rmlora-deploy inspect rm-lora --compare plain-lora --plot spectrum.png
      rmlora-deploy inspect spam-bundle --json
    """
    console = make_console(as_json=as_json)
    if plot is not None:
        check_plot_path(plot)
    if _is_bundle(path):
        if base or others or plot:
            raise ConfigError(f"{path} is a bundle: --base, --compare and --plot are for adapters.")
        bundle = Bundle.open(path)
        if as_json:
            print_json(describe_bundle(bundle))
        else:
            _show_bundle(console, bundle)
        return
    adapters = {name: load_package(place) for name, place in unique_names((path, *others)).items()}
    spectra = {name: adapter_spectrum(adapter) for name, adapter in adapters.items()}
    first = next(iter(adapters))
    fit = fit_to_base(adapters[first], Checkpoint(resolve_base(base))) if base else None
    described = [describe_adapter(adapters[name], spectra[name]) for name in adapters]
    if plot is not None:
        plot_spectra(spectra, plot)
    if as_json:
        print_json({**described[0], **_fit_json(fit), **({"compared": described[1:]} if others else {})})
    else:
        _show_adapter(console, adapters[first], described[0], show_all=show_all)
        _show_spectra(console, spectra)
        if fit is not None:
            _show_fit(console, fit)
        if plot is not None:
            console.print(f"Spectrum drawn in {plot}.")
    if fit is not None:
        require_fit(fit, adapters[first])


def _is_bundle(path: Path) -> bool:
    """Tell a bundle from an adapter by its files.

    Raises:
        InputError: it is neither.
    """
    if not path.exists():
        raise InputError(f"Nothing to inspect: {path} does not exist.")
    if not path.is_dir():
        raise InputError(f"{path} is a file: give the directory of an adapter or a bundle.")
    if (path / MANIFEST_FILE).is_file():
        return True
    if not (path / CONFIG_FILE).is_file():
        raise InputError(
            f"{path} holds neither {CONFIG_FILE} nor {MANIFEST_FILE}: it is no adapter and no bundle made by "
            "rmlora-deploy export."
        )
    return False


def _fit_json(fit: Fit | None) -> dict[str, Any]:
    return {} if fit is None else {"fit": {**asdict(fit), "same_base": fit.same_base, "fits": fit.fits}}


def _show_adapter(console: Console, adapter: Adapter, facts: Mapping[str, Any], *, show_all: bool) -> None:
    grid = _facts(
        {
            "task": facts["task"] or "not recorded",
            "labels": _list(facts["labels"]),
            "base": facts["base"]["model"] or "not recorded",
            "size": f"{facts['bytes'] / 1e6:.2f} MB: {facts['parameters']['factors']:,} parameters in "
            f"{len(facts['modules'])} modules, {facts['parameters']['modules_to_save']:,} saved whole",
            "saved whole": _list(sorted(facts["modules_to_save"])),
            "settings": _settings(facts["settings"]),
            **{f"{split} metrics": _metrics(scores) for split, scores in _scores(facts["metrics"])},
        }
    )
    console.print(f"[bold]Adapter {adapter.source}[/]")
    console.print(grid)
    shown = facts["modules"] if show_all else facts["modules"][:_SHOWN]
    prefix = _common_prefix([item["module"] for item in facts["modules"]])
    table = Table(f"module of {prefix}" if prefix else "module", "in → out", "rank", "alpha", "scale", *_MEASURES)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for item in shown:
        rank = item["rank"] if item["active_rank"] == item["rank"] else f"{item['active_rank']} of {item['rank']}"
        table.add_row(
            item["module"].removeprefix(f"{prefix}."), f"{item['in']} → {item['out']}", str(rank), f"{item['alpha']:g}",
            f"{item['scale']:g}", f"{item['numerical_rank']}", f"{item['stable_rank']:.2f}", f"{item['effective_rank']:.2f}",
        )  # fmt: skip
    console.print(table)
    if len(shown) < len(facts["modules"]):
        console.print(f"[dim]… and {len(facts['modules']) - len(shown)} more modules: --all lists them.[/]")


def _common_prefix(paths: list[str]) -> str:
    """Return the leading module path that all share, leaving each at least its last part."""
    parts = [path.split(".")[:-1] for path in paths]
    shared = [step[0] for step in takewhile(lambda step: len(set(step)) == 1, zip(*parts, strict=False))]
    return ".".join(shared)


def _show_spectra(console: Console, spectra: Mapping[str, AdapterSpectrum]) -> None:
    table = Table("mean over modules", *(f"{name} rank" for name in _MEASURES), "largest σ", "smallest σ")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spectrum in spectra.items():
        values = spectrum.joint.singular_values
        table.add_row(
            name, f"{spectrum.numerical_rank:.2f}", f"{spectrum.stable_rank:.2f}", f"{spectrum.effective_rank:.2f}",
            f"{values[0]:.3g}", f"{values[-1]:.3g}",
        )  # fmt: skip
    console.print(table)


def _show_fit(console: Console, fit: Fit) -> None:
    found = len(fit.modules) - len(fit.misfits)
    weights = {True: "the weights it was trained on", False: "[red]other weights[/]", None: "base not recorded"}
    verdict = "modules missing" if fit.fingerprint is None and fit.misfits else weights[fit.same_base]
    console.print(f"Fit to {fit.base}: {found} of {len(fit.modules)} modules found with the right shape; {verdict}.")
    for item in fit.misfits[:_SHOWN]:
        console.print(f"  [red]✗[/] {item.module}: {item.problem}")


def _merged_adapter(facts: Mapping[str, Any]) -> dict[str, str]:
    if facts["mode"] == "branches":
        return {}
    adapter = facts["adapter"]
    return {"adapter": f"{adapter['source']} ({adapter['modules']} modules, {adapter['parameters']:,} parameters)"}


def _show_bundle(console: Console, bundle: Bundle) -> None:
    facts = describe_bundle(bundle)
    model = facts["model"]
    operators = ", ".join(f"{name} {count}" for name, count in list(model["operators"].items())[:_SHOWN])
    console.print(f"[bold]Bundle {facts['source']}[/]")
    console.print(
        _facts(
            {
                "task": facts["task"],
                "labels": _list(facts["labels"]),
                **({"pooling": str(bundle.pooling)} if bundle.pooling is not None else {}),
                "precision": f"{facts['precision']}, {facts['mode']}",
                "graph": f"{facts['nodes']} nodes, opset {model['opset']}, {model['bytes'] / 1e6:.1f} MB",
                "operators": operators,
                "base": facts["base"]["source"],
                **_merged_adapter(facts),
                "made by": facts["created_by"],
            }
        )
    )
    values = Table("", "name", "type", "shape")
    for role in ("inputs", "outputs"):
        for item in model[role]:
            shape = " × ".join(str(side) for side in item["shape"])
            values.add_row(role.removesuffix("s"), item["name"], item["dtype"], shape)
    console.print(values)
    if facts["mode"] == "branches":
        show_adapters(console, bundle)
    files = Table("file", "MB")
    files.columns[1].justify = "right"
    for name, size in facts["files"].items():
        files.add_row(name, f"{size / 1e6:.2f}")
    console.print(files)
    if bundle.manifest.verification is not None:
        show_report(console, bundle.manifest.verification)
    else:
        console.print("[yellow]Not verified:[/] run  rmlora-deploy verify  before you rely on it.")


def _facts(facts: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(f"[dim]{name}[/]", value)
    return grid


def _settings(settings: Mapping[str, Any] | None) -> str:
    if settings is None:
        return "a PEFT adapter from elsewhere"
    rank, active = settings["rank"], settings["active_rank"]
    kind = "plain LoRA" if active == rank and not settings["orth_weight"] else "RM-LoRA"
    return (
        f"{kind}: rank {rank}, {active} active in a step, alpha {settings['alpha']:g}, orth_weight "
        f"{settings['orth_weight']:g}, {settings['mask_sharing']} masks, mode {settings['mask_mode']}"
    )


def _scores(metrics: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, float]]]:
    return [(split, metrics[split]) for split in ("validation", "test") if metrics and split in metrics]


def _metrics(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())


def _list(names: list[str] | None) -> str:
    if not names:
        return "none"
    return ", ".join(names[:_SHOWN]) + (f" … ({len(names)} in all)" if len(names) > _SHOWN else "")
