"""``rmlora-deploy report``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console

from rmlora.errors import ConfigError, OutputError
from rmlora.spectrum import AdapterSpectrum
from rmlora.storage import atomic_file, check_writable
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.console import json_option, make_console, print_json
from rmlora_deploy.inspection.adapter_report import describe_ranks
from rmlora_deploy.inspection.bundle_report import describe_bundle
from rmlora_deploy.inspection.html_page import html_page
from rmlora_deploy.inspection.model_card import bundle_header, model_card
from rmlora_deploy.inspection.update_spectra import bundle_spectra

__all__ = ["command"]

_ENDINGS = (".html", ".md")


@click.command("report")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path),
    help="File to write, .html or .md.  [default: Markdown on stdout]",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@json_option
def command(bundle: Path, output: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write a page about BUNDLE for its model card: one file that needs no other.

    It says what the bundle is and how it is run, lists its adapters with the figures of their training, and what verification
    measured: errors against PyTorch, metrics, and for language models the perplexity before and after the export. The
    dimensions that the updates of each adapter use are shown as bars, in HTML also as a plot (with matplotlib). Markdown
    begins with the block that the Hugging Face hub reads. Every file is listed with its SHA-256. --json prints the same figures
    instead of Markdown. Needs no torch.

    \b
    Examples:
      rmlora-deploy report home --output home.html
      rmlora-deploy report home --output README.md
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
    spectra = bundle_spectra(opened)
    figures = describe_bundle(opened)
    page = model_card(opened, spectra, figures["files"])
    if output is not None:
        _write(output, opened, page, spectra, make_console(as_json=as_json))
    elif not as_json:
        click.echo(bundle_header(opened) + "\n" + page, nl=False)
    if as_json:
        print_json({**figures, "spectra": {name: describe_ranks(spectrum) for name, spectrum in spectra.items()}})


def _write(output: Path, opened: Bundle, page: str, spectra: Mapping[str, AdapterSpectrum], console: Console) -> None:
    """Write the page in the format of the file's name."""
    as_html = output.suffix.lower() == ".html"
    content = html_page(page, opened.path.resolve().name, spectra) if as_html else bundle_header(opened) + "\n" + page
    with atomic_file(output) as temporary:
        temporary.write_text(content, encoding="utf-8")
    without = " without the plot, as matplotlib is not installed" if as_html and find_spec("matplotlib") is None else ""
    console.print(f"Wrote {output}{without}.")
