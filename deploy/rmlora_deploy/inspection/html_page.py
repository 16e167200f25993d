"""A page of Markdown as one HTML file that loads nothing, with pictures inside."""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from markdown_it import MarkdownIt

from rmlora.spectrum import AdapterSpectrum
from rmlora_deploy.inspection.model_card import SPECTRA_HEADING
from rmlora_deploy.inspection.spectrum_plot import plot_spectra

__all__ = ["html_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .8rem 0 1.2rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #e5e7eb; padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
th { color: #6b7280; font-weight: 600; }
code { font-size: 90%; overflow-wrap: anywhere; }
pre { background: #f3f4f6; padding: .8rem 1rem; border-radius: .4rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Nothing is loaded and no program runs, whatever the page holds."""


def html_page(markdown: str, title: str, spectra: Mapping[str, AdapterSpectrum]) -> str:
    """Return ``markdown`` as a whole HTML page; with matplotlib, the spectra are plotted below their heading.

    Args:
        markdown: the page; markup of HTML in it stays text.
        title: of the page.
        spectra: adapter → spectrum of its updates; empty for none.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    if spectra and find_spec("matplotlib") is not None:
        heading = f"<h2>{SPECTRA_HEADING.removeprefix('## ')}</h2>"
        body = body.replace(heading, f"{heading}\n{_plot(spectra)}", 1)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _plot(spectra: Mapping[str, AdapterSpectrum]) -> str:
    """Return the plot of all spectra as an SVG element."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "spectra.svg"
        plot_spectra(spectra, path)
        drawing = path.read_text(encoding="utf-8")
    drawing = drawing[drawing.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
