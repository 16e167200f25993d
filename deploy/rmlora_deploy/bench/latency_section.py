"""How long a bundle takes, as a section of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rmlora.markdown_text import escaped, table
from rmlora.wording import counted
from rmlora_deploy.bench.bench_plan import BatchShape

__all__ = ["latency_section"]


def latency_section(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of the section.

    Args:
        result: of :func:`rmlora_deploy.bench.rounds.run_bench`, of a model of any kind.
    """
    machine, settings = result["environment"], result["settings"]
    rows = [
        [escaped(row["name"]), f"{row['threads']}", str(BatchShape(row["rows"], row["tokens"])), *_figures(row)]
        for row in result["rows"]
    ]
    head = [
        "run by",
        "threads",
        "rows × tokens",
        "median ms",
        "90 % within ms",
        "rows a second",
        "first token ms",
        "tokens a second",
    ]
    return [
        f"Measured on {escaped(machine['processor'])}, {counted(machine['cores'], 'core')}, in "
        f"{counted(settings['rounds'], 'round')} of {settings['seconds']:g} s, each in a new process.",
        "",
        *table(head, rows),
    ]


def _figures(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row; those of the other kind of model are empty."""
    if "tokens_per_second" in row:
        return ["", "", "", f"{row['first_token_ms']:.1f}", f"{row['tokens_per_second']:,.1f}"]
    return [f"{row['p50_ms']:.1f}", f"{row['p90_ms']:.1f}", f"{row['rows_per_second']:,.0f}", "", ""]
