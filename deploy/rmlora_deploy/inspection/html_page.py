"""A page of Markdown as one HTML file that loads nothing, with pictures inside."""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from markdown_it import MarkdownIt

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


def html_page(markdown: str, title: str, plots: Mapping[str, Callable[[Path], None]]) -> str:
    """Return ``markdown`` as a whole HTML page.

    Args:
        markdown: the page; markup of HTML in it stays text.
        title: of the page.
        plots: heading, as it is in ``markdown`` → draws the plot below it, into the file that it gets.
    """
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = renderer.render(markdown)
    for heading, draw in plots.items():
        rendered = renderer.render(heading)
        body = body.replace(rendered, rendered + _drawing(draw), 1)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _drawing(draw: Callable[[Path], None]) -> str:
    """Return a plot as an SVG element."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "plot.svg"
        draw(path)
        drawing = path.read_text(encoding="utf-8")
    drawing = drawing[drawing.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
