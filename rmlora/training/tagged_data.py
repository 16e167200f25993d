"""Reading texts with tagged words: from lists of words and tags, character spans, or CoNLL files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rmlora.entities import OUTSIDE, TagScheme
from rmlora.errors import ConfigError, InputError, some_of
from rmlora.training.conll import CONLL_SUFFIXES, read_conll
from rmlora.training.data import Columns
from rmlora.training.empty_rows import explain_incomplete
from rmlora.training.held_out import choose_held_out, complete_splits
from rmlora.training.input_columns import find_column
from rmlora.training.sources import open_table
from rmlora.training.table import Reading, Table
from rmlora.training.tagged_cells import TaggedText, is_spans, text_of_spans, text_of_tags
from rmlora.training.text_file import read_text

__all__ = ["TaggedData", "load_tagged", "order_tags", "read_tagged"]

_WORDS, _TEXTS = ("tokens", "words"), ("text", "sentence", "content")
_TAGS = ("ner_tags", "tags", "labels", "label", "entities", "spans")
_PREFIXES = "BIESLU"


@dataclass(frozen=True)
class TaggedData:
    """One split."""

    source: str
    texts: tuple[TaggedText, ...]
    declared: tuple[str, ...] | None = None
    """Tags in the order that the dataset declares; None if it declares none."""
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read and what was not used."""


def load_tagged(
    sources: Mapping[str, str | None],
    columns: Columns,
    reading: Reading,
    *,
    tags: Sequence[str] | None,
    validation_fraction: float,
    seed: int,
) -> dict[str, TaggedData]:
    """Load all splits; if no validation data is given, split it off the training data.

    Equal texts end up on the same side. The split depends on ``seed`` only.

    Args:
        sources: split → file or dataset; None if it is not given.
        columns: names that the user chose.
        reading: how the user wants files read.
        tags: those that the user named, in the order of the outputs; None takes those in the training data.
        validation_fraction: share of the texts of the training data that is split off.
        seed: of the split.

    Raises:
        InputError: data is missing, unreadable or empty, a row cannot be used, or has a tag that the training data lacks.
        ConfigError: the data has a tag that ``tags`` lacks.
    """
    train = read_tagged(str(sources["train"]), columns, reading=reading, tags=tags)
    known = tags or order_tags(train)
    return complete_splits(
        train,
        sources,
        lambda source: read_tagged(source, columns, reading=reading, tags=known),
        lambda data: _split_off(data, validation_fraction, seed),
    )


def read_tagged(
    source: str, columns: Columns, *, reading: Reading | None = None, tags: Sequence[str] | None = None
) -> TaggedData:
    """Read one file or hub dataset (``name`` or ``name:split``).

    Args:
        source: where the data is.
        columns: names that the user chose.
        reading: how the user wants the file read; None if the caller offers no choice.
        tags: of the model; the data may number them from 0. None accepts every tag that has a name.

    Raises:
        InputError: it cannot be read, lacks the columns, or a row cannot be used; it is named by its number.
    """
    table, text_column, tag_column = _open(source, columns, reading)
    declared = table.class_names.get(tag_column)
    texts: list[TaggedText] = []
    empty: list[int] = []
    for row, (value, cell) in enumerate(zip(table.columns[text_column], table.columns[tag_column], strict=True)):
        where = f"{table.unit.capitalize()} {table.numbers([row])[0]} of {source}"
        if value is None or cell is None or not any(map(str.strip, _strings(value, where))):
            empty.append(row)
        elif is_spans(cell, value):
            texts.append(text_of_spans(value, cell, where=where))
        else:
            texts.append(text_of_tags(value, cell, declared, tags, where=where))
    notes = [*table.notes]
    if empty:
        notes.append(explain_incomplete(empty, table, source, reading, lack=("words", "tags")))
    if not texts:
        raise InputError(f"{source} has no row with both '{text_column}' and '{tag_column}': check the columns.")
    if others := [name for name in table.columns if name not in (text_column, tag_column)]:
        notes.append(f"Columns of {source} that are not used: {some_of(others)}.")
    if tags is not None:
        _refuse_unknown(texts, tags, source)
    return TaggedData(source, tuple(texts), declared, tuple(notes))


def order_tags(data: TaggedData) -> tuple[str, ...]:
    """Return the tags of the training data in the order of the head's outputs: ``O`` first, the others by label.

    Where tags have prefixes, every label gets all prefixes that occur: rare ones may be missing in small data.

    Raises:
        InputError: there are fewer than two tags.
    """
    if data.declared is not None:
        return data.declared
    found = {tag for text in data.texts for tag in text.tags}
    scheme = TagScheme.of(found)
    if scheme.prefixed:
        parts = {scheme.split(tag) for tag in found if tag != OUTSIDE}
        used = {prefix for prefix, _ in parts} | ({"I"} if any(text.from_spans for text in data.texts) else set())
        prefixes = [prefix for prefix in _PREFIXES if prefix in used]
        others = [f"{prefix}-{label}" for label in sorted({label for _, label in parts}) for prefix in prefixes]
    else:
        others = sorted(found - {OUTSIDE})
    order = ([OUTSIDE] if OUTSIDE in found or scheme.prefixed else []) + others
    if len(order) < 2:
        raise InputError(
            f"{data.source} has only the tag '{next(iter(found))}': there is nothing to tell apart; check --label-column."
        )
    return tuple(order)


def _open(source: str, columns: Columns, reading: Reading | None) -> tuple[Table, str, str]:
    """Return the data, and the names of its columns with texts or words, and with tags or spans."""
    path = Path(source)
    if path.suffix.lower() in CONLL_SUFFIXES and path.is_file():
        text = read_text(path, reading.encoding if reading else None, flag=reading is not None)
        return read_conll(path, text, columns.label), "tokens", "tags"
    chosen = {name.lower() for name in (columns.inputs, columns.label) if name}
    table = open_table(source, {*_WORDS, *_TEXTS, *_TAGS, *chosen}, reading)
    if table.rows == 0:
        raise InputError(f"{source} holds no rows: there is nothing to read.")
    tag_column = _column(table, columns.label, _TAGS, "--label-column", source)
    spans = any(is_spans(cell, "") for cell in table.columns[tag_column] if cell)
    usual = _TEXTS if spans else (*_WORDS, *_TEXTS)
    return table, _column(table, columns.inputs, usual, "--text-column", source), tag_column


def _column(table: Table, chosen: str | None, usual: Sequence[str], flag: str, source: str) -> str:
    advice = (
        ". Words with tags are lists in the columns tokens and ner_tags, entities are {start, end, label} in the columns text and "
        "entities."
    )
    return find_column(table, chosen, usual, flag, source, advice=advice)


def _strings(value: object, where: str) -> Iterable[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple, np.ndarray)) or not all(isinstance(item, str) for item in items):
        raise InputError(f"{where} holds neither a text nor a list of words: write it as one of these.")
    return list(items)


def _refuse_unknown(texts: Sequence[TaggedText], tags: Sequence[str], source: str) -> None:
    known = set(tags)
    for tag in dict.fromkeys(tag for text in texts for tag in text.tags):
        if tag not in known:
            raise ConfigError(
                f"{source} has the tag '{tag}', which the model's tags lack ({some_of(tags)}): correct the data, or name all tags "
                "with --labels when the model is trained."
            )


def _split_off(data: TaggedData, fraction: float, seed: int) -> tuple[TaggedData, TaggedData]:
    keys = {text.sentence.text for text in data.texts}
    if len(keys) < 2:
        raise InputError(
            f"{data.source} holds only one text, so no validation data can be split off: add rows, or give --validation."
        )
    chosen = choose_held_out(keys, fraction, seed)
    train = tuple(text for text in data.texts if text.sentence.text not in chosen)
    held_out = tuple(text for text in data.texts if text.sentence.text in chosen)
    return replace(data, texts=train), replace(data, texts=held_out, notes=())
