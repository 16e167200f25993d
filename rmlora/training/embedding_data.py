"""Reading pairs, scored pairs and triplets of texts, to learn or to measure vectors (no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rmlora.errors import InputError, some_of
from rmlora.single_text_inputs import SingleTextInputs
from rmlora.training.embedding_columns import KNOWN_NAMES, EmbeddingColumns, RowKind, find_columns
from rmlora.training.empty_rows import empty_cells, explain_empty
from rmlora.training.held_out import choose_held_out, complete_splits
from rmlora.training.sources import open_table
from rmlora.training.table import Reading, Table

__all__ = ["EmbeddingData", "load_embedding_data", "read_embedding_data"]


@dataclass(frozen=True)
class EmbeddingData:
    """One split."""

    source: str
    columns: EmbeddingColumns
    """As they were found."""
    texts: tuple[tuple[str, ...], ...]
    """The two or three texts of every row."""
    scores: tuple[float, ...] | None
    """Of every row; None unless rows are scored pairs."""
    numbers: tuple[int, ...]
    """Line or row of each row in ``source``."""
    unit: str
    """What ``numbers`` counts: ``line`` or ``row``."""
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read and what was not used."""

    @property
    def kind(self) -> RowKind:
        """What a row is."""
        return self.columns.kind

    def where(self, row: int) -> str:
        """Return how an error names a row: ``Line 7 of data.csv``."""
        return f"{self.unit.capitalize()} {self.numbers[row]} of {self.source}"

    def only(self, rows: Sequence[int]) -> EmbeddingData:
        """Return these rows, without notes."""
        return replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            scores=None if self.scores is None else tuple(self.scores[row] for row in rows),
            numbers=tuple(self.numbers[row] for row in rows),
            notes=(),
        )


def load_embedding_data(
    sources: Mapping[str, str | None],
    chosen: EmbeddingColumns,
    reading: Reading,
    *,
    validation_fraction: float,
    seed: int,
) -> dict[str, EmbeddingData]:
    """Load all splits; if no validation data is given, split it off the training data.

    Rows with the same first text end up on the same side. The split depends on ``seed`` only.

    Args:
        sources: split → file or dataset; None if it is not given.
        chosen: names of columns.
        reading: how the user wants files read.
        validation_fraction: share of the first texts of the training data that is split off.
        seed: of the split.

    Raises:
        InputError: data is missing, unreadable or empty, a row cannot be used, or splits hold rows of different kinds.
        ConfigError: the chosen columns contradict each other.
    """
    train = read_embedding_data(str(sources["train"]), chosen, reading=reading)

    def read(source: str) -> EmbeddingData:
        data = read_embedding_data(source, chosen, reading=reading)
        _refuse_another_kind(data, train.kind)
        return data

    return complete_splits(train, sources, read, lambda data: _split_off(data, validation_fraction, seed))


def read_embedding_data(source: str, chosen: EmbeddingColumns, *, reading: Reading | None = None) -> EmbeddingData:
    """Read one file or hub dataset (``name`` or ``name:split``).

    Args:
        source: where the data is.
        chosen: names of columns.
        reading: how the user wants the file read; None if the caller offers no choice.

    Raises:
        InputError: it cannot be read, lacks the columns, or a row cannot be used; it is named by its number.
        ConfigError: the chosen columns contradict each other.
    """
    table = open_table(source, KNOWN_NAMES | {name.lower() for name in chosen.names}, reading)
    columns = find_columns(table, chosen, source)
    if table.rows == 0:
        raise InputError(f"{source} holds no rows: there is nothing to read.")
    empty = empty_cells(SingleTextInputs(), table, columns.texts, source)
    scores = _scores(table, columns.score, source) if columns.score is not None else None
    if columns.score is not None and scores is not None:
        empty[columns.score] = [row for row, score in enumerate(scores) if score is None]
    notes = list(table.notes)
    if any(empty.values()):
        notes.append(explain_empty(empty, table, source, reading))
    left_out = {row for rows in empty.values() for row in rows}
    kept = [row for row in range(table.rows) if row not in left_out]
    if not kept:
        raise InputError(f"{source} has no row with {some_of(columns.names)}: check the columns.")
    if others := [name for name in table.columns if name and name not in columns.names]:
        notes.append(f"Columns of {source} that are not used: {some_of(others)}.")
    cells = [table.columns[name] for name in columns.texts]
    return EmbeddingData(
        source,
        columns,
        tuple(tuple(column[row] for column in cells) for row in kept),
        None if scores is None else tuple(score for row in kept if (score := scores[row]) is not None),
        tuple(table.numbers(kept)),
        table.unit,
        tuple(notes),
    )


def _scores(table: Table, column: str, source: str) -> list[float | None]:
    """Return the number in every cell; None where it is empty."""
    if (declared := table.class_names.get(column)) is not None:
        raise InputError(
            f"'{column}' of {source} holds the classes {some_of(declared)} and no scores: name a column of numbers, more for more "
            "similar texts, with --label-column."
        )
    return [_score(cell, table, row, column, source) for row, cell in enumerate(table.columns[column])]


def _score(cell: Any, table: Table, row: int, column: str, source: str) -> float | None:
    if cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell)):
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"{table.unit.capitalize()} {table.numbers([row])[0]} of {source} has '{str(cell)[:60]}' in '{column}', where a score "
            "belongs: write a number, more for more similar texts, or name another --label-column."
        )
    return value


def _refuse_another_kind(data: EmbeddingData, kind: RowKind) -> None:
    if data.kind != kind:
        raise InputError(
            f"{data.source} holds {data.kind}, and the training data {kind}: give both the same columns, or name them with "
            "--text-column, --pair-column and --label-column or --negative-column."
        )


def _split_off(data: EmbeddingData, fraction: float, seed: int) -> tuple[EmbeddingData, EmbeddingData]:
    keys = {texts[0] for texts in data.texts}
    if len(keys) < 2:
        raise InputError(
            f"{data.source} has {'a single row' if len(data.texts) == 1 else f'one {data.columns.first!r} for all rows'}, so no "
            "validation data can be split off: add rows, or give --validation."
        )
    chosen = choose_held_out(keys, fraction, seed)
    rows = range(len(data.texts))
    train = data.only([row for row in rows if data.texts[row][0] not in chosen])
    held_out = data.only([row for row in rows if data.texts[row][0] in chosen])
    return replace(train, notes=data.notes), held_out
