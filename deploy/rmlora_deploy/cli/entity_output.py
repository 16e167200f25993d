"""How ``rmlora-deploy predict`` shows the entities of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rmlora_deploy.cli.console import colored, make_console
from rmlora_deploy.inference import Tagging

__all__ = ["note_unread", "plain_entities", "show_entities"]


def plain_entities(answer: Tagging) -> list[dict[str, Any]]:
    """Return the entities of a text as JSON has them."""
    return [dataclasses.asdict(entity) for entity in answer.entities]


def show_entities(console: Console, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Print a table with the entities that each column found in every text."""
    table = Table("input", *names)
    for row in rows:
        table.add_row(row["input"], *("\n".join(map(_line, row["answers"][name])) or "–" for name in names))
    console.print(table)


def _line(entity: Mapping[str, Any]) -> str:
    return f"{entity['label']}  {entity['text']}  {entity['score']:.1%}"


def note_unread(answers: Sequence[Tagging]) -> None:
    """Say on stderr from where a text was too long to be read."""
    for text, start in {
        answer.text: answer.unread_from for answer in answers if answer.unread_from is not None
    }.items():
        note = f"Note: {text[:30]!r}… is longer than the model reads: nothing is found from character {start} on."
        make_console(as_json=True).print(colored(note, "yellow"))
