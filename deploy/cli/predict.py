"""``rmlora-deploy predict``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from deploy.cli.console import json_option, make_console, print_json
from deploy.predict import Classifier
from rmlora.errors import InputError

__all__ = ["command"]


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1)
@click.option(
    "--with", "others", multiple=True, type=click.Path(path_type=Path), help="Ask this bundle too; repeatable."
)
@click.option(
    "--file", type=click.Path(path_type=Path), help="File with one text, or image path, per line; - is stdin."
)
@click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="Labels shown for each input.")
@click.option("--provider", default="cpu", show_default=True, help="Execution provider: cpu, cuda, tensorrt, …")
@json_option
def command(
    bundle: Path, inputs: tuple[str, ...], others: tuple[Path, ...], file: Path | None, top: int, provider: str, as_json: bool
) -> None:  # fmt: skip
    r"""Classify INPUTS (texts, or image files) with a BUNDLE, without torch.

    Without inputs, on a terminal, it asks for them one by one; an empty line ends it.

    \b
    Examples:
      rmlora-deploy predict spam-bundle "You have won a prize, call now"
      rmlora-deploy predict spam-bundle --with trec-bundle
      rmlora-deploy predict photo-bundle cat.jpg dog.jpg --top 3 --json
    """
    console = make_console(as_json=as_json)
    classifiers = {path.name: Classifier.open(path, provider=provider) for path in (bundle, *others)}
    given = [*inputs, *(_lines(file) if file else [])]
    if given:
        _answer(console, classifiers, given, top, as_json=as_json)
    elif not sys.stdin.isatty():
        _answer(console, classifiers, _lines(Path("-")), top, as_json=as_json)
    else:
        console.print(f"Type an input for {' and '.join(classifiers)}; an empty line ends.")
        while line := _ask():
            try:
                _answer(console, classifiers, [line], top, as_json=as_json)
            except InputError as error:
                console.print(f"[yellow]{error}[/]")


def _answer(
    console: Console, classifiers: dict[str, Classifier], inputs: list[str], top: int, *, as_json: bool
) -> None:
    if not inputs:
        raise InputError("There is nothing to classify: give inputs as arguments, with --file, or on stdin.")
    answers = {name: classifier.predict(inputs) for name, classifier in classifiers.items()}
    rows = [
        {"input": given, **{name: dict(found[number].ranking[:top]) for name, found in answers.items()}}
        for number, given in enumerate(inputs)
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("input", *classifiers)
    for row in rows:
        table.add_row(str(row["input"]), *(_cell(row[name]) for name in classifiers))
    console.print(table)


def _cell(ranking: Any) -> str:
    pairs: Iterable[tuple[str, float]] = ranking.items()
    return "\n".join(f"{label}  {probability:.1%}" for label, probability in pairs)


def _lines(file: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"Input file not found: {file} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text ({error}).") from None
    return [line for line in text.splitlines() if line.strip()]


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
