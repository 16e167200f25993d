"""How ``rmlora-deploy predict`` shows the answers to questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rmlora_deploy.inference import FoundAnswer

__all__ = ["plain_answers", "show_answers"]


def plain_answers(answers: Sequence[FoundAnswer]) -> list[dict[str, Any]]:
    """Return the answers to a question as JSON has them."""
    return [dataclasses.asdict(answer) for answer in answers]


def show_answers(console: Console, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Print a table with the answers that each column gave to every question."""
    table = Table("question", *names)
    for row in rows:
        table.add_row(row["input"][0], *("\n".join(map(_line, row["answers"][name])) for name in names))
    console.print(table)


def _line(answer: Mapping[str, Any]) -> str:
    return f"{answer['text'] or '(no answer)'}  {answer['score']:.1%}"
