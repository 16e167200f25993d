"""``rmlora-deploy inspect``: show what an adapter directory or a bundle holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.directory_kind import holds_model
from rmlora.errors import ConfigError, InputError
from rmlora.package import CONFIG_FILE, load_package
from rmlora.plots import check_plot_path
from rmlora.readable import check_readable
from rmlora.spectrum import adapter_spectrum
from rmlora_deploy.bundles.bundle import MANIFEST_FILE, Bundle
from rmlora_deploy.cli.base_warning import warn_of_other_base
from rmlora_deploy.cli.console import json_option, make_console, print_json, unique_names
from rmlora_deploy.cli.inspect_output import SHOWN, show_adapter, show_bundle, show_fit, show_spectra
from rmlora_deploy.inspection.adapter_report import describe_adapter
from rmlora_deploy.inspection.base_fit import Fit, fit_to_base, require_fit
from rmlora_deploy.inspection.bundle_report import describe_bundle
from rmlora_deploy.inspection.spectrum_plot import plot_spectra

__all__ = ["command"]


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--base", help="Check that the adapter fits this base: a directory, a .gguf file or a hub name.")
@click.option(
    "--compare",
    "others",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Adapter to compare with; repeatable.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Plot the singular values to this .png, .svg or .pdf file."
)
@click.option("--all", "show_all", is_flag=True, help=f"List every module, not only the first {SHOWN}.")
@json_option
def command(
    path: Path, base: str | None, others: tuple[Path, ...], plot: Path | None, show_all: bool, as_json: bool
) -> None:
    """Show what PATH holds: an adapter directory or a bundle.

    For an adapter: sizes, settings, metrics, and how many dimensions each update s·BA really uses. The numerical rank
    is the number of singular values that are not zero, the stable rank weighs them by energy, and the effective rank
    is the exponential of their entropy. RM-LoRA aims to keep the last two higher than plain LoRA does; --compare shows
    both. With --base every module is looked up in that base, and the exit code is 3 if the adapter does not fit.

    For a bundle: files, precision, operators, inputs and outputs, and what verification measured. Needs no torch.

    \b
    Examples:
      rmlora-deploy inspect spam --base MiniLM
      rmlora-deploy inspect spam --compare spam-lora --plot spectrum.png
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
            show_bundle(console, bundle)
        return
    adapters = {name: load_package(directory) for name, directory in unique_names((path, *others)).items()}
    spectra = {name: adapter_spectrum(adapter) for name, adapter in adapters.items()}
    first = next(iter(adapters))
    if base:
        warn_of_other_base([path], base)
    fit = fit_to_base(adapters[first], Checkpoint(resolve_base(base))) if base else None
    described = [describe_adapter(adapters[name], spectra[name]) for name in adapters]
    if plot is not None:
        plot_spectra(spectra, plot)
    if as_json:
        print_json({**described[0], **_fit_json(fit), **({"compared": described[1:]} if others else {})})
    else:
        show_adapter(console, adapters[first], described[0], show_all=show_all)
        show_spectra(console, spectra)
        if fit is not None:
            show_fit(console, fit)
        if plot is not None:
            console.print(f"Spectrum plotted to {plot}.")
    if fit is not None:
        require_fit(fit, adapters[first])


def _is_bundle(path: Path) -> bool:
    """Return True if ``path`` is a bundle, False if it is an adapter.

    Raises:
        InputError: it is neither.
    """
    check_readable([path / CONFIG_FILE, path / MANIFEST_FILE])
    if not path.exists():
        raise InputError(f"Nothing to inspect: {path} does not exist.")
    if not path.is_dir():
        raise InputError(f"{path} is a file: give the directory of an adapter or a bundle.")
    if (path / MANIFEST_FILE).is_file():
        return True
    if holds_model(path):
        raise InputError(f"{path} is a model: give an adapter trained on it, or a bundle made by rmlora-deploy export.")
    if not (path / CONFIG_FILE).is_file():
        raise InputError(
            f"{path} holds neither {CONFIG_FILE} nor {MANIFEST_FILE}: it is neither an adapter nor a bundle made by "
            "rmlora-deploy export."
        )
    return False


def _fit_json(fit: Fit | None) -> dict[str, Any]:
    return {} if fit is None else {"fit": {**asdict(fit), "same_base": fit.same_base, "fits": fit.fits}}
