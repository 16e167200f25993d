"""What ``rmlora-deploy compare`` prints: texts side by side, and the figures of all contestants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rmlora_deploy.cli.console import colored
from rmlora_deploy.inference.generator import Generated
from rmlora_deploy.inference.text_comparison import TextComparison, first_difference

__all__ = ["comparison_as_json", "show_comparison", "show_standings"]

_EXCERPT = 24
"""Characters of a text that are shown from its first difference on."""


def show_comparison(console: Console, comparison: TextComparison, row: int) -> None:
    """Print the answers to one question side by side; what differs from the first text is in color."""
    question, answers = comparison.questions[row], comparison.of(row)
    first, *others = answers.values()
    console.print(colored("prompt  ", "dim", question.text))
    if question.reference is not None:
        console.print(colored("right   ", "dim", question.reference))
    table = Table("", *answers, show_lines=True)
    table.add_row("text", _visible(first.text), *(_marked(first.text, answer.text) for answer in others))
    table.add_row("differs", "", *(_difference(first, answer) for answer in others))
    table.add_row("tokens", *(_tokens(answer) for answer in answers.values()))
    table.add_row("tokens/s", *(f"{len(answer.tokens) / answer.seconds:.0f}" for answer in answers.values()))
    console.print(table)


def show_standings(console: Console, comparison: TextComparison) -> None:
    """Print what every contestant reached on all questions."""
    standings, count = comparison.standings, len(comparison.questions)
    first = next(iter(standings))
    metrics = list(standings[first].scores)
    table = Table(f"{count} prompts", *metrics, f"same text as {first}", "tokens an answer", "tokens/s")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, standing in standings.items():
        table.add_row(
            name, *(f"{standing.scores[metric]:.1%}" for metric in metrics),
            "" if name == first else f"{standing.agreement:.1%}",
            f"{standing.tokens / count:.1f}", f"{standing.tokens_per_second:.0f}",
        )  # fmt: skip
    console.print(table)
    console.print(f"All give the same text to {comparison.agreeing} of {count} prompts.")


def comparison_as_json(comparison: TextComparison) -> dict[str, Any]:
    """Return everything as JSON has it; positions of differences are characters, from 0."""
    first = next(iter(comparison.answers))
    return {
        "contestants": {
            name: {
                **standing.scores,
                "agreement": standing.agreement,
                "tokens": standing.tokens,
                "seconds": round(standing.seconds, 4),
                "tokens_per_second": round(standing.tokens_per_second, 2),
            }
            for name, standing in comparison.standings.items()
        },
        "prompts": len(comparison.questions),
        "agreeing": comparison.agreeing,
        "rows": [
            {
                "prompt": question.prompt,
                **({"reference": question.reference} if question.reference is not None else {}),
                "answers": _answers(comparison.of(row), first),
            }
            for row, question in enumerate(comparison.questions)
        ],
    }


def _answers(answers: Mapping[str, Generated], first: str) -> dict[str, Any]:
    return {
        name: {
            "text": answer.text,
            "differs_at": first_difference(answers[first].text, answer.text),
            "tokens": len(answer.tokens),
            "prompt_tokens": answer.prompt_tokens,
            "finish": answer.finish,
            "seconds": round(answer.seconds, 4),
        }
        for name, answer in answers.items()
    }


def _marked(one: str, other: str) -> Text | str:
    place = first_difference(one, other)
    if place is None or not other.strip():
        return _visible(other)
    return colored(other[place:], "yellow", before=other[:place])


def _visible(text: str) -> Text | str:
    """Return a text as it is, or in words if nothing of it would be seen."""
    if text.strip():
        return text
    return colored("nothing" if not text else f"only white space: {text[:_EXCERPT]!r}", "dim")


def _difference(first: Generated, other: Generated) -> str:
    place = first_difference(first.text, other.text)
    if place is None:
        return "not at all"
    here, there = (text[place : place + _EXCERPT] or "its end" for text in (other.text, first.text))
    return f"from character {place + 1} on: {here!r} for {there!r}"


def _tokens(answer: Generated) -> str:
    return f"{len(answer.tokens)}, {'ended' if answer.finish == 'end' else 'cut at --max-new-tokens'}"
