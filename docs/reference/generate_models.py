"""Write docs/models.md from what the tests recorded in models.json; with ``--check`` only say whether it is current.

python docs/reference/generate_models.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from generated_page import write_or_check

__all__ = ["main", "render"]

RECORD = Path(__file__).with_name("models.json")
PAGE = Path(__file__).parents[1] / "models.md"
COLUMNS = {
    "train": "train", "merge": "merge", "merged": "export, merged", "branches": "export, branches", "int8": "int8, merged",
}  # fmt: skip
KINDS = {
    "text-classification": "Text models as classifiers",
    "image-classification": "Image models as classifiers",
    "image-feature-extraction": "Image models that make vectors",
}

INTRODUCTION = """\
# Models

<!-- Written by  python docs/reference/generate_models.py  from reference/models.json: do not edit. -->

What works with each type of model, tried with a tiny random base of its kind and two adapters: `train` runs, `merge` writes a
checkpoint that gives PEFT's outputs, and bundles, merged, with branches, and merged in int8, pass their verification against
PyTorch and PEFT. `make models` tries all of it again and writes this page; `make architectures` tests that every cell is as
it says. Language models that generate have [a table of their own](decoders.md), and so have [other tasks](export.md).
"""


def render() -> str:
    """Return the whole page."""
    recorded: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    parts, notes = [INTRODUCTION], list[str]()
    for task, title in KINDS.items():
        rows = {name: row["steps"] for name, row in recorded.items() if row["task"] == task}
        lines = [f"| model | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
        for name, steps in rows.items():
            cells = [_cell(steps[step], notes) for step in COLUMNS]
            lines.append(f"| {name.removesuffix('-vectors')} | {' | '.join(cells)} |")
        parts.append("\n".join([f"## {title}", "", *lines, ""]))
    if notes:
        parts.append("\n".join(["## Why not", "", *(f"{number}. {note}" for number, note in enumerate(notes, 1)), ""]))
    return "\n".join(parts)


def _cell(found: str, notes: list[str]) -> str:
    """Return ``yes``, or the number of the reason, which joins ``notes``."""
    if found == "yes":
        return found
    if found not in notes:
        notes.append(found)
    return f"no ({notes.index(found) + 1})"


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` return 1 if it is out of date."""
    return write_or_check(PAGE, render(), Path(__file__), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
