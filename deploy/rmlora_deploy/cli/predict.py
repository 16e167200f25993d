"""``rmlora-deploy predict``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.console import json_option, make_console, print_json, unique_names
from rmlora_deploy.cli.embedding_output import embed_rows, open_embedders, show_vectors
from rmlora_deploy.inference.classifier import AdapterClassifier, Classifier, Prediction

__all__ = ["command"]


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1)
@click.option(
    "--with", "others", multiple=True, type=click.Path(path_type=Path), help="Ask this bundle too; repeatable."
)
@click.option(
    "--adapter",
    "-a",
    "adapters",
    multiple=True,
    metavar="NAME",
    help="Ask this adapter of a bundle with branches; repeatable.  [default: all of them]",
)
@click.option(
    "--file", type=click.Path(path_type=Path), help="File with one text, or image path, per line; - is stdin."
)
@click.option(
    "--top", type=click.IntRange(1), default=1, show_default=True, help="Labels shown for each input, likeliest first."
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Inputs computed at once.")
@click.option("--provider", default="cpu", show_default=True, help="Execution provider: cpu, cuda, tensorrt, …")
@json_option
def command(
    bundle: Path, inputs: tuple[str, ...], others: tuple[Path, ...], adapters: tuple[str, ...], file: Path | None,
    top: int, batch_size: int, provider: str, as_json: bool,
) -> None:  # fmt: skip
    """Classify INPUTS (texts, or image files) with a BUNDLE, or embed them, without torch.

    Prints the likeliest label of each input and its probability; with a bundle for embeddings how alike the texts are, and
    with --json their vectors. A bundle with branches answers with all its adapters,
    mixed in one batch. Without inputs it reads one per line from stdin;
    on a terminal it asks for them one by one, and an empty line ends it. An input that starts with a dash goes
    after "--".

    \b
    Examples:
      rmlora-deploy predict spam-bundle "You have won a prize, call now"
      rmlora-deploy predict spam-bundle --with trec-bundle
      rmlora-deploy predict both -a spam -a trec "Who won the prize ?"
      rmlora-deploy predict photo-bundle cat.jpg dog.jpg --top 3 --json
      rmlora-deploy predict spam-bundle --file messages.txt --json
    """
    console = make_console(as_json=as_json)
    given = [*inputs, *(_lines(file) if file else [])]
    paths = unique_names((bundle, *others))
    embeds = any(Bundle.open(path, check_files=False).task.outputs.pools for path in paths.values())
    asked_of = [] if embeds else _classifiers(paths, adapters, provider)
    embedders = open_embedders(paths, adapters, provider) if embeds else {}
    columns = [column for item in asked_of for column in item.columns] or list(embedders)

    def answer(asked: Sequence[str]) -> None:
        rows = embed_rows(embedders, asked, batch_size) if embeds else _classify(asked_of, asked, top, batch_size)
        if as_json:
            print_json(rows)
        elif embeds:
            show_vectors(console, rows, columns)
        else:
            console.print(_table(rows, columns))

    if not given and file is None and sys.stdin.isatty():
        _converse(console, answer, columns)
        return
    given = given or (_lines(Path("-")) if file is None else [])
    if not given:
        raise InputError("There is nothing to classify or embed: give inputs as arguments, with --file, or on stdin.")
    answer(given)


@dataclass(frozen=True)
class _Opened:
    """A bundle and the columns that it answers."""

    name: str
    classifier: Classifier | AdapterClassifier
    columns: list[str]
    adapters: list[str]

    def answers(self, inputs: Sequence[str], batch_size: int) -> list[list[Prediction]]:
        """Return for every column the answers to all inputs."""
        if isinstance(self.classifier, Classifier):
            return [self.classifier.predict(inputs, batch_size=batch_size)]
        everything = [given for given in inputs for _ in self.adapters]
        found = self.classifier.predict(everything, self.adapters * len(inputs), batch_size=batch_size)
        return [found[number :: len(self.adapters)] for number in range(len(self.adapters))]


def _classifiers(paths: Mapping[str, Path], adapters: Sequence[str], provider: str) -> list[_Opened]:
    opened = [_opened(name, path, adapters, provider, alone=len(paths) == 1) for name, path in paths.items()]
    if adapters and not any(isinstance(item.classifier, AdapterClassifier) for item in opened):
        raise ConfigError("--adapter is for bundles made with --mode branches; this one has its adapter merged.")
    _refuse_mixture(opened)
    return opened


def _opened(name: str, path: Path, adapters: Sequence[str], provider: str, *, alone: bool) -> _Opened:
    if Bundle.open(path, check_files=False).mode == "merged":
        return _Opened(name, Classifier.open(path, provider=provider), [name], [])
    classifier = AdapterClassifier.open(path, provider=provider)
    chosen = list(adapters or classifier.bundle.adapters)
    if not chosen:
        raise InputError(f"{path} has no adapters yet: add one with  rmlora-deploy adapter add.")
    for adapter in chosen:
        classifier.bundle.adapter(adapter)
    columns = chosen if alone else [f"{name} · {adapter}" for adapter in chosen]
    return _Opened(name, classifier, columns, chosen)


def _refuse_mixture(opened: Sequence[_Opened]) -> None:
    kinds = {item.classifier.bundle.task.inputs.modality: item.name for item in opened}
    if len(kinds) > 1:
        raise ConfigError(
            f"'{kinds['text']}' reads texts and '{kinds['image']}' reads images: ask them in two commands."
        )


def _classify(opened: Sequence[_Opened], inputs: Sequence[str], top: int, batch_size: int) -> list[dict[str, Any]]:
    """Return for every input what each column answers, likeliest first."""
    answers = {
        column: found
        for item in opened
        for column, found in zip(item.columns, item.answers(inputs, batch_size), strict=True)
    }
    return [
        {
            "input": given,
            "answers": {
                name: [{"label": label, "probability": share} for label, share in found[number].ranking[:top]]
                for name, found in answers.items()
            },
        }
        for number, given in enumerate(inputs)
    ]


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    table = Table("input", *(escape(name) for name in names))
    for row in rows:
        ranked = (row["answers"][name] for name in names)
        cells = ("\n".join(f"{item['label']}  {item['probability']:.1%}" for item in ranking) for ranking in ranked)
        table.add_row(escape(row["input"]), *(escape(cell) for cell in cells))
    return table


def _converse(console: Console, answer: Callable[[Sequence[str]], None], names: Sequence[str]) -> None:
    """Ask for inputs until an empty line or the end of the input; one that cannot be used ends nothing."""
    console.print(f"Type an input for {escape(' and '.join(names))}; an empty line ends.")
    while True:
        try:
            line = console.input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        try:
            answer([line])
        except InputError as error:
            console.print(f"[yellow]{escape(str(error))}[/]")


def _lines(file: Path) -> list[str]:
    """Return the lines of ``file`` that are not blank."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"Input file not found: {file} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read as UTF-8 text ({error}): give a file with one input per line."
        ) from None
    return [line for line in text.splitlines() if line.strip()]
