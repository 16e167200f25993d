"""``rmlora-deploy predict``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rmlora.errors import ConfigError, InputError
from rmlora.text_pair import InputForm, TextPair
from rmlora.training.data import Columns
from rmlora_deploy.api import load
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.answer_output import plain_answers, show_answers
from rmlora_deploy.cli.console import colored, json_option, make_console, print_json, remote_code_option, unique_names
from rmlora_deploy.cli.embedding_output import show_vectors
from rmlora_deploy.cli.entity_output import note_unread, plain_entities, show_entities
from rmlora_deploy.cli.predict_inputs import check_forms, note_file, read_file, read_lines, shown_input
from rmlora_deploy.cli.provider_options import provider_option
from rmlora_deploy.inference import Answerer, Classifier, Embedder, Prediction, Tagger, Tagging

__all__ = ["command"]

_Loader = Callable[..., Any]
"""Opens the bundle at a path, one with branches for batches of ``rows``: a :class:`Classifier`, a :class:`Tagger`, an
:class:`Answerer` or an :class:`Embedder`."""


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
    "--pair",
    "pairs",
    nargs=2,
    multiple=True,
    metavar="TEXT TEXT",
    help="Two texts to judge together, or a question and its context; repeatable.",
)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="File with one text, image path, or pair of texts with a tab between, per line, or a csv, tsv, jsonl or parquet table; "
    "- is stdin.",
)
@click.option("--text-column", help="Column of a table's texts.  [default: text, sentence, …]")
@click.option(
    "--pair-column", help="Column of the second text of a pair.  [default: recognized, as in premise and hypothesis]"
)
@click.option(
    "--top",
    type=click.IntRange(1),
    help="Labels, or answers, shown for each input, likeliest first.  [default: 1; where several may apply, all that do]",
)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Inputs computed at once.")
@provider_option()
@remote_code_option
@json_option
def command(
    bundle: Path, inputs: tuple[str, ...], others: tuple[Path, ...], adapters: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...], file: Path | None, text_column: str | None, pair_column: str | None, top: int | None, batch_size: int, provider: str, trust_remote_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Classify INPUTS (texts, images, pairs), find entities or answers in them, or embed them with a BUNDLE, without torch.

    Prints the likeliest label of each input and its probability; where several may apply, each whose probability is at
    least one half (or what train --threshold recorded), or a dash; for a model with one output, or for regression, its numbers;
    for token-classification the entities of each text, and for question-answering the answer in each context, with --json also
    where they start and end; for embeddings, how similar the inputs are, and with --json their vectors. A bundle with branches answers with all its adapters, mixed in one batch. Without INPUTS the command reads
    one per line from stdin; on a terminal it asks for them one by one, and an empty line ends it. Put an input that starts
    with a dash after "--".

    \b
    Examples:
      rmlora-deploy predict spam-bundle "You have won a prize, call now"
      rmlora-deploy predict spam-bundle --with trec-bundle
      rmlora-deploy predict both -a spam -a trec "Who won the prize ?"
      rmlora-deploy predict slots-bundle "Turn on the desk lamp in the kitchen"
      rmlora-deploy predict photo-bundle cat.jpg dog.jpg --top 3 --json
      rmlora-deploy predict spam-bundle --file messages.txt --json
      rmlora-deploy predict nli-bundle --pair "A man plays a guitar." "Somebody makes music."
      rmlora-deploy predict qa-bundle --pair "Who wrote Faust?" "Goethe wrote Faust in Weimar." --top 3
    """
    console = make_console(as_json=as_json)
    if (text_column or pair_column) and file is None:
        raise ConfigError("--text-column and --pair-column are of a table: give it with --file.")
    loader = partial(load, provider=provider, trust_remote_code=trust_remote_code)
    columns = _open_columns(unique_names((bundle, *others)), adapters, loader, batch_size)
    names = [name for column in columns for name in column.names]
    kind = type(columns[0].opened)
    asked = [pair for column in columns for pair in column.forms]
    forms = {form for _, form in asked if form is not None}
    form = next(iter(forms)) if len(forms) == 1 else None
    task = columns[0].opened.bundle.task
    if top is not None and kind in (Embedder, Tagger):
        raise ConfigError(f"--top is for labels and answers, and {bundle} is for {task.name}: leave it out.")
    if task.inputs.modality == "text":
        note_file(inputs)
    if pairs and not task.inputs.takes_pairs:
        raise ConfigError(
            f"--pair is for models that read two texts, and {bundle} is for {task.name}: give its inputs one by one."
        )
    given: list[Any] = [*inputs, *(TextPair(*pair) for pair in pairs)]
    if file is not None:
        given += read_file(file, task, form, Columns(text_column, None, pair_column))

    def answer(given: Sequence[Any]) -> None:
        check_forms(given, asked)
        rows = _ask(columns, given, top, batch_size)
        if as_json:
            print_json(rows)
        elif kind is Embedder:
            show_vectors(console, rows, names)
        elif kind is Tagger:
            show_entities(console, rows, names)
        elif kind is Answerer:
            show_answers(console, rows, names)
        else:
            console.print(_table(rows, names))

    if not given and file is None and sys.stdin.isatty():
        _converse(console, answer, names, pairs=form == "pair")
        return
    given = given or (read_lines(Path("-"), form) if file is None else [])
    if not given:
        raise InputError(
            "There is nothing to classify, tag, answer or embed: give inputs as arguments, with --file, or on stdin."
        )
    answer(given)


@dataclass(frozen=True)
class _Columns:
    """A bundle, and the columns of the table that it fills: one for each adapter asked, or one."""

    opened: Classifier | Tagger | Answerer | Embedder
    names: list[str]
    adapters: list[str | None]

    @property
    def forms(self) -> list[tuple[str, InputForm | None]]:
        """Name and form of what each column was trained on."""
        found = [self.opened.bundle.input_form(adapter) for adapter in self.adapters]
        return list(zip(self.names, found, strict=True))

    def answers(self, inputs: Sequence[Any], top: int | None, batch_size: int) -> Iterator[Sequence[Any]]:
        """Yield for every input the answer in each column; a batch mixes the adapters."""
        count = len(self.adapters)
        repeated, chosen = [given for given in inputs for _ in range(count)], self.adapters * len(inputs)
        if isinstance(self.opened, Embedder):
            found: Sequence[Any] = list(self.opened.embed(repeated, chosen, batch_size=batch_size))
        elif isinstance(self.opened, Tagger):
            found = self.opened.tag(repeated, chosen, batch_size=batch_size)
            note_unread(found)
        elif isinstance(self.opened, Answerer):
            found = self.opened.answer(repeated, chosen, top=top or 1, batch_size=batch_size)
        else:
            found = self.opened.predict(repeated, chosen, batch_size=batch_size)
        return (found[start : start + count] for start in range(0, len(found), count))


def _open_columns(paths: Mapping[str, Path], adapters: Sequence[str], loader: _Loader, rows: int) -> list[_Columns]:
    """Open every bundle; errors before any is asked if they cannot be asked together."""
    bundles = {name: Bundle.open(path, check_files=False) for name, path in paths.items()}
    if writer := next((bundle for bundle in bundles.values() if bundle.task.outputs.kind == "text"), None):
        raise ConfigError(
            f"{writer.path} is for {writer.task.name}, not for labels or vectors: ask it with  rmlora-deploy generate."
        )
    _refuse_mixture(bundles)
    if adapters and all(bundle.mode == "merged" for bundle in bundles.values()):
        raise ConfigError("--adapter is for bundles made with --mode branches; this one has its adapter merged.")
    return [_open(name, bundle, adapters, loader, rows, alone=len(paths) == 1) for name, bundle in bundles.items()]


def _open(name: str, bundle: Bundle, adapters: Sequence[str], loader: _Loader, rows: int, *, alone: bool) -> _Columns:
    chosen = list(adapters or bundle.adapters) if bundle.mode == "branches" else []
    for adapter in chosen:
        bundle.adapter(adapter)
    if bundle.mode == "branches" and not chosen and bundle.task.outputs.has_labels:
        raise InputError(f"{bundle.path} has no adapters yet: add one with  rmlora-deploy adapter add.")
    opened = loader(bundle.path, rows=rows) if bundle.mode == "branches" else loader(bundle.path)
    if not chosen:
        return _Columns(opened, [name], [None])
    names = chosen if alone else [f"{name} · {adapter}" for adapter in chosen]
    return _Columns(opened, names, [*chosen])


def _refuse_mixture(bundles: Mapping[str, Bundle]) -> None:
    """Raise :class:`ConfigError` if two bundles take other inputs or give other outputs than each other."""
    (first, one), *others = bundles.items()
    for name, other in others:
        if other.task.inputs.modality != one.task.inputs.modality:
            raise ConfigError(
                f"'{first}' reads {one.task.inputs.modality}s and '{name}' reads {other.task.inputs.modality}s: ask them in "
                "two commands."
            )
        if other.task.outputs.kind != one.task.outputs.kind:
            raise ConfigError(
                f"'{first}' is for {one.task.name} and '{name}' for {other.task.name}: ask them in two commands."
            )


def _ask(columns: Sequence[_Columns], inputs: Sequence[Any], top: int | None, batch_size: int) -> list[dict[str, Any]]:
    """Return for every input what each column answers: labels or answers, likeliest first, entities, or a vector."""
    names = [name for column in columns for name in column.names]
    found = zip(*(column.answers(inputs, top, batch_size) for column in columns), strict=True)
    return [
        {
            "input": shown_input(given, number),
            "answers": {name: _plain(item, top) for name, item in zip(names, chain(*row), strict=True)},
        }
        for number, (given, row) in enumerate(zip(inputs, found, strict=True), 1)
    ]


def _plain(answer: Any, top: int | None) -> list[Any]:
    """Return an answer as JSON has it; ``top`` is the number of labels, None takes what the model answers."""
    if isinstance(answer, Prediction):
        kind = "probability" if answer.is_probability else "score"
        shown = answer.chosen if top is None else answer.ranking[:top]
        return [{"label": label, kind: value} for label, value in shown]
    if isinstance(answer, Tagging):
        return plain_entities(answer)
    if isinstance(answer, list):
        return plain_answers(answer)
    return [float(value) for value in answer]


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    table = Table("input", *names)
    for row in rows:
        ranked = (row["answers"][name] for name in names)
        cells = ("\n".join(f"{item['label']}  {_amount(item)}" for item in ranking) or "–" for ranking in ranked)
        table.add_row(row["input"] if isinstance(row["input"], str) else "\n".join(row["input"]), *cells)
    return table


def _amount(item: Mapping[str, Any]) -> str:
    return f"{item['probability']:.1%}" if "probability" in item else f"{item['score']:.4g}"


def _converse(console: Console, answer: Callable[[Sequence[Any]], None], names: Sequence[str], *, pairs: bool) -> None:
    """Ask for inputs until an empty line or the end of the input; one that cannot be used ends nothing."""
    what = "two texts, a line each," if pairs else "an input"
    console.print(f"Type {what} for {' and '.join(names)}; an empty line ends.")
    while True:
        try:
            lines = [console.input("> ").strip()]
            if pairs and lines[0]:
                lines.append(console.input("+ ").strip())
        except EOFError:
            return
        if not all(lines):
            return
        try:
            answer([TextPair(*lines)] if pairs else lines)
        except InputError as error:
            console.print(colored(str(error), "yellow"))
