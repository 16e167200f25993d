"""What ``rmlora-deploy predict`` is asked: arguments, pairs, lines of a file or of stdin, and rows of a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmlora.errors import InputError
from rmlora.json_files import read_text
from rmlora.tasks import Task
from rmlora.text_lines import text_lines
from rmlora.text_pair import InputForm, TextPair, check_form
from rmlora.training.data import Columns, load_inputs
from rmlora_deploy.cli.console import colored, make_console

__all__ = ["check_forms", "note_file", "read_file", "read_lines", "shown_input"]

_TABLES = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"}
"""Endings of data files, whose lines are more than texts."""


def read_file(file: Path, task: Task, form: InputForm | None, columns: Columns) -> list[Any]:
    """Return the inputs in ``file``: the rows of a table, or one line each; of pairs, with a tab between both texts.

    Args:
        file: ``-`` is stdin.
        task: of the bundle.
        form: of the inputs; None if single texts and pairs are taken.
        columns: of a table.

    Raises:
        InputError: it cannot be read, or an input in it is empty or has another form.
    """
    if file.suffix.lower() in _TABLES:
        return load_inputs(task, str(file), columns, form=form, all_rows=True)
    if columns.inputs or columns.pair:
        raise InputError(
            f"{file} is not a csv, tsv, json, jsonl or parquet file, so it has no columns: leave their names out."
        )
    return read_lines(file, form)


def read_lines(file: Path, form: InputForm | None) -> list[Any]:
    """Return the lines of ``file`` that are not blank; those of pairs are split at their tab."""
    if str(file) != "-":
        text = read_text(file, what="Input file")
    else:
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise InputError(f"Standard input is not {error.encoding} text: give it as UTF-8.") from None
    where = "Standard input" if str(file) == "-" else str(file)
    lines = [(number, line) for number, line in enumerate(text_lines(text), 1) if line.strip()]
    return [_pair(line, number, where) for number, line in lines] if form == "pair" else [line for _, line in lines]


def _pair(line: str, number: int, where: str) -> TextPair:
    texts = line.split("\t")
    if len(texts) != 2 or not all(text.strip() for text in texts):
        raise InputError(f"Line {number} of {where} is not a pair: write two texts with a tab between them.")
    return TextPair(*texts)


def check_forms(inputs: Sequence[Any], asked: Sequence[tuple[str, InputForm | None]]) -> None:
    """Raise :class:`InputError` for an input that one of those asked, by name and form, was not trained on."""
    for name, form in asked:
        for number, value in enumerate(inputs, 1):
            try:
                check_form(value, form, number=number, name=name)
            except InputError as error:
                advice = "--pair gives two texts, and --adapter chooses who is asked"
                raise InputError(f"{str(error).removesuffix('.')} ({advice}).") from None


def shown_input(value: Any, number: int) -> str | TextPair:
    """Return how an input is called beside its answers: words as the text whose characters answers count, images by path."""
    if isinstance(value, (str, TextPair)):
        return value
    if isinstance(value, Path):
        return str(value)
    return " ".join(value) if isinstance(value, list) else f"image {number}"


def note_file(inputs: Sequence[str]) -> None:
    """Say on stderr which of the texts is the name of a file: it is answered as it is."""
    name = next(filter(_is_file, inputs), None)
    if name is not None:
        note = (
            f"Note: {name} is a file; its name is the text that is answered here, and --file reads the lines of a file."
        )
        make_console(as_json=True).print(colored(note, "yellow"))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a text too long for a name
        return False
