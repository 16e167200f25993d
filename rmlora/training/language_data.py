"""Loading the splits of instruction data, and splitting off validation data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rmlora.errors import InputError
from rmlora.training.conversations import Conversations, TextColumns, read_conversations, usual_names
from rmlora.training.held_out import choose_held_out, complete_splits
from rmlora.training.sources import open_table
from rmlora.training.table import Reading

__all__ = ["load_conversations"]


def load_conversations(
    sources: Mapping[str, str | None], columns: TextColumns, reading: Reading, *, validation_fraction: float, seed: int
) -> dict[str, Conversations]:
    """Load all splits; if no validation data is given, split it off the training data.

    Rows that ask the same end up on the same side. The split depends on ``seed`` only.

    Args:
        sources: split → file or data set; None if it is not given.
        columns: names that the user chose.
        reading: how the user wants files read.
        validation_fraction: share of the prompts of the training data that is split off.
        seed: of the split.

    Raises:
        InputError: data is missing, unreadable or empty, or a row cannot be used.
    """
    wanted = usual_names() | {name.lower() for name in vars(columns).values() if name}

    def read(source: str) -> Conversations:
        return read_conversations(open_table(source, wanted, reading), source, columns, reading)

    train = read(str(sources["train"]))
    return complete_splits(train, sources, read, lambda data: _split_off(data, validation_fraction, seed))


def _split_off(data: Conversations, fraction: float, seed: int) -> tuple[Conversations, Conversations]:
    keys = {row.key for row in data.rows}
    if len(keys) < 2:
        raise InputError(
            f"{data.source} asks only one thing, so no validation data can be split off: add rows, or give --validation."
        )
    chosen = choose_held_out(keys, fraction, seed)
    train = tuple(row for row in data.rows if row.key not in chosen)
    held_out = tuple(row for row in data.rows if row.key in chosen)
    return replace(data, rows=train), replace(data, rows=held_out, notes=())
