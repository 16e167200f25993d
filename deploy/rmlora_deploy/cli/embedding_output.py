"""What ``rmlora-deploy predict`` says with bundles for embeddings: vectors, and how alike they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmlora.errors import ConfigError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.embedder import Embedder, cosines

__all__ = ["embed_rows", "open_embedders", "show_vectors"]

Column: TypeAlias = tuple[Embedder, str | None]
"""Who answers, and with which adapter."""

_MATRIX = 8
"""Texts up to which every two are compared in the table; with more, each with the nearest."""

_NUMBERS = 3
"""Components shown."""


def open_embedders(paths: Mapping[str, Path], adapters: Sequence[str], provider: str) -> dict[str, Column]:
    """Return name of the column → who answers in it: every adapter of a bundle with branches, or its base if it has none.

    Raises:
        ConfigError: one of the bundles classifies, or ``adapters`` are named and all are merged.
        InputError: a bundle is damaged or has no such adapter.
    """
    columns: dict[str, Column] = {}
    for name, path in paths.items():
        if not (bundle := Bundle.open(path, check_files=False)).task.outputs.pools:
            raise ConfigError(f"'{name}' is for {bundle.task.name} and others embed: ask them in two commands.")
        embedder = Embedder.open(path, provider=provider)
        chosen: list[str | None] = [*(adapters or bundle.adapters)] if bundle.mode == "branches" else []
        for adapter in filter(None, chosen):
            bundle.adapter(adapter)
        for choice in chosen or [None]:
            label = name if choice is None else choice if len(paths) == 1 else f"{name} · {choice}"
            columns[label] = (embedder, choice)
    if adapters and all(choice is None for _, choice in columns.values()):
        raise ConfigError("--adapter is for bundles made with --mode branches; this one has its adapter merged.")
    return columns


def embed_rows(columns: Mapping[str, Column], texts: Sequence[str], batch_size: int) -> list[dict[str, Any]]:
    """Return for every text the vector of each column."""
    made = {name: who.embed(texts, choice, batch_size=batch_size) for name, (who, choice) in columns.items()}
    return [
        {"input": text, "answers": {name: [float(item) for item in vectors[number]] for name, vectors in made.items()}}
        for number, text in enumerate(texts)
    ]


def show_vectors(console: Console, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Print a table for each column: how alike the texts are, and how the vectors begin."""
    for name in names:
        vectors = np.array([row["answers"][name] for row in rows], np.float32)
        alike = cosines(vectors)
        few = len(rows) <= _MATRIX
        heads = [str(number + 1) for number in range(len(rows))] if few else ["nearest", "cosine"]
        table = Table(f"{escape(name)}: cosines", *heads, f"the first of {vectors.shape[1]} numbers")
        for column in table.columns[1:-1]:
            column.justify = "right"
        for number, row in enumerate(rows):
            if few:
                cells = [f"{cosine:.3f}" for cosine in alike[number]]
            else:
                nearest = int(np.where(np.arange(len(rows)) == number, -2.0, alike[number]).argmax())
                cells = [str(nearest + 1), f"{alike[number, nearest]:.3f}"]
            numbers = "  ".join(f"{value:+.3f}" for value in vectors[number, :_NUMBERS])
            table.add_row(f"{number + 1}  {escape(row['input'])}", *cells, f"{numbers}  …")
        console.print(table)
