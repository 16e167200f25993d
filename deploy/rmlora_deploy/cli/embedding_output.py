"""How ``rmlora-deploy predict`` shows vectors: how similar the inputs are, and how each vector begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rmlora_deploy.inference.embedder import cosines

__all__ = ["show_vectors"]

_MATRIX = 8
"""Inputs up to which every two are compared in the table; with more, each with the nearest."""

_NUMBERS = 3
"""Components shown."""


def show_vectors(console: Console, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Print a table for each column: how alike the inputs are, and how the vectors begin."""
    for name in names:
        vectors = np.array([row["answers"][name] for row in rows], np.float32)
        alike = cosines(vectors)
        few = len(rows) <= _MATRIX
        heads = [str(number + 1) for number in range(len(rows))] if few else ["nearest", "cosine"]
        table = Table(f"{name}: cosines", *heads, f"the first of {vectors.shape[1]} numbers")
        for column in table.columns[1:-1]:
            column.justify = "right"
        for number, row in enumerate(rows):
            if few:
                cells = [f"{cosine:.3f}" for cosine in alike[number]]
            else:
                nearest = int(np.where(np.arange(len(rows)) == number, -2.0, alike[number]).argmax())
                cells = [str(nearest + 1), f"{alike[number, nearest]:.3f}"]
            numbers = "  ".join(f"{value:+.3f}" for value in vectors[number, :_NUMBERS])
            table.add_row(f"{number + 1}  {row['input']}", *cells, f"{numbers}  …")
        console.print(table)
