"""Texts about topics, as pairs, scored pairs and triplets: texts of one topic share no word that tells it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["pairs", "scored_pairs", "triplets", "write_lines"]

_TOPICS = 4


def scored_pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs with 4 as the score of two texts of one topic, and 1 for two topics."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        first = int(rng.integers(_TOPICS))
        second = first if number % 2 else int((first + 1 + rng.integers(_TOPICS - 1)) % _TOPICS)
        rows.append(
            {
                "sentence1": _text(first, 0, rng),
                "sentence2": _text(second, 1, rng),
                "score": 4 if first == second else 1,
            }
        )
    return rows


def triplets(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return an anchor, a text of its topic, and one of another."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        topic, other = (int(number) for number in rng.choice(_TOPICS, 2, replace=False))
        rows.append(
            {"anchor": _text(topic, 0, rng), "positive": _text(topic, 1, rng), "negative": _text(other, 1, rng)}
        )
    return rows


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return queries and answers."""
    return [{"query": row["anchor"], "answer": row["positive"]} for row in triplets(count, seed)]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def _text(topic: int, side: int, rng: np.random.Generator) -> str:
    """Return two words of the topic, other ones on the other side of a pair, and a word that says nothing."""
    words = [f"w{4 * topic + 2 * side + part}" for part in rng.permutation(2)]
    return " ".join([*words, f"w{rng.integers(20, 28)}"])
