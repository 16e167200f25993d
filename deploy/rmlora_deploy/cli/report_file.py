"""``rmlora-deploy report``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rmlora.errors import ConfigError, OutputError, is_installed
from rmlora.spectrum import AdapterSpectrum
from rmlora.storage import atomic_file, check_writable
from rmlora_deploy.bench.bench_inputs import longest_text
from rmlora_deploy.bench.bench_plan import BenchSettings
from rmlora_deploy.bench.latency_section import latency_section
from rmlora_deploy.bench.machine import usable_cores
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.console import json_option, make_console, print_json
from rmlora_deploy.cli.measuring import measure
from rmlora_deploy.inspection.adapter_report import describe_ranks
from rmlora_deploy.inspection.bundle_report import describe_bundle
from rmlora_deploy.inspection.confusion_plot import MOST_LABELS, plot_confusion
from rmlora_deploy.inspection.html_page import html_page
from rmlora_deploy.inspection.mistakes_section import confusions, labels_in
from rmlora_deploy.inspection.model_card import SPECTRA_HEADING, bundle_header, model_card
from rmlora_deploy.inspection.spectrum_plot import plot_spectra
from rmlora_deploy.inspection.update_spectra import bundle_spectra

__all__ = ["command"]

_ENDINGS = (".html", ".md")
_TOKENS = 32
"""Length of the texts whose latency is measured."""


@click.command("report")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path),
    help="File to write, .html or .md.  [default: Markdown on stdout]",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@click.option("--latency", is_flag=True, help="Measure how long it takes, as bench does.")
@json_option
def command(bundle: Path, output: Path | None, overwrite: bool, latency: bool, as_json: bool) -> None:
    """Write a page about BUNDLE for its model card: one file that needs no other.

    It says what the bundle is and how it is run, lists its adapters with the figures of their training, and what verification
    measured: errors against PyTorch, metrics, and for language models the perplexity before and after the export. Where
    labeled data were measured (export or verify with --data), it shows the figures of every label, and which are taken for
    which. The dimensions that the updates of each adapter use are shown as bars. HTML also has both as plots (with matplotlib).
    Markdown begins with the block that the Hugging Face hub reads. Every file is listed with its SHA-256. --json prints the
    same figures instead of Markdown. Needs no torch.

    \b
    Examples:
      rmlora-deploy report home --output home.html
      rmlora-deploy report home --output README.md --latency
    """
    if output is not None:
        if output.suffix.lower() not in _ENDINGS:
            raise ConfigError(
                f"'{output}' is neither a page nor Markdown: end the name given to --output in .html or .md."
            )
        check_writable(output)
        if output.exists() and not overwrite:
            raise OutputError(f"{output} already exists: choose another --output or pass --overwrite.")
    opened = Bundle.open(bundle)
    console = make_console(as_json=as_json)
    spectra = bundle_spectra(opened)
    figures = describe_bundle(opened)
    speed = _measure(opened, console) if latency else None
    page = model_card(opened, spectra, figures["files"], latency_section(speed) if speed is not None else ())
    if output is not None:
        _write(output, opened, page, spectra, console)
    elif not as_json:
        click.echo(bundle_header(opened) + "\n" + page, nl=False)
    if as_json:
        more = {"latency": speed} if speed is not None else {}
        spectra_json = {name: describe_ranks(spectrum) for name, spectrum in spectra.items()}
        print_json({**figures, "spectra": spectra_json, **more})


def _measure(opened: Bundle, console: Console) -> dict[str, Any]:
    """Return what ``bench`` measures of the bundle alone, on the CPU, with texts of one length."""
    length = min(_TOKENS, longest_text(opened) or _TOKENS)
    threads = min(2, len(usable_cores()))
    settings = BenchSettings(lengths=(length,), threads=(threads,), providers=("cpu",), engines=("onnx",), rounds=1)
    return measure(opened, settings, console)


def _write(output: Path, opened: Bundle, page: str, spectra: Mapping[str, AdapterSpectrum], console: Console) -> None:
    """Write the page in the format of the file's name."""
    without = ""
    if output.suffix.lower() == ".html":
        plots = _plots(opened, spectra) if is_installed("matplotlib") else None
        without = " without plots, as matplotlib is not installed" if plots is None else ""
        content = html_page(page, opened.path.resolve().name, plots or {})
    else:
        content = bundle_header(opened) + "\n" + page
    with atomic_file(output) as temporary:
        temporary.write_text(content, encoding="utf-8")
    console.print(f"Wrote {output}{without}.")


def _plots(opened: Bundle, spectra: Mapping[str, AdapterSpectrum]) -> dict[str, Callable[[Path], None]]:
    """Return heading of the page → draws what belongs below it."""
    found = confusions(opened.manifest.verification)
    plots: dict[str, Callable[[Path], None]] = {
        heading: partial(plot_confusion, confusion)
        for heading, confusion in found.items()
        if len(labels_in(confusion)) <= MOST_LABELS
    }
    if spectra:
        plots[SPECTRA_HEADING] = partial(plot_spectra, spectra)
    return plots
