"""What is asked and what answers it, read from a user's instruction data as tokens."""

from __future__ import annotations

from typing import NamedTuple

from rmlora.training.conversations import TextColumns, read_conversations, usual_names
from rmlora.training.data import Columns
from rmlora.training.sources import open_table
from rmlora.training.table import Reading
from rmlora_deploy.bundles.text_codec import TextCodec

__all__ = ["Exchange", "read_exchanges"]


class Exchange(NamedTuple):
    """One row of instruction data."""

    asked: list[int]
    """Tokens of the prompt; of the whole text, for a plain one."""
    answer: list[int]
    """Tokens of the answer; none for a plain text."""
    text: str
    """The answer as it stands in the data; empty for a plain text."""


def read_exchanges(codec: TextCodec, source: str, columns: Columns, *, raw: bool = False) -> list[Exchange]:
    """Return the rows of ``source``, at least one.

    Args:
        codec: tokenizer of the model, with whose chat template the prompts are written.
        source: chats, prompts with completions, or plain texts.
        columns: names of its columns.
        raw: prompts are continued as they are, even if the model has a chat template.

    Raises:
        InputError: the data cannot be used.
    """
    wanted = usual_names() | ({columns.inputs.lower()} if columns.inputs else set())
    reading = Reading(skip_empty=True)
    data = read_conversations(open_table(source, wanted, reading), source, TextColumns(text=columns.inputs), reading)
    rows: list[Exchange] = []
    for row in data.rows:
        if data.form == "text":
            rows.append(Exchange(codec.encode(row.completion, raw=True), [], ""))
            continue
        chat = data.form == "messages" or (codec.chat is not None and not raw)
        asked = codec.encode(row.as_messages()[:-1]) if chat else codec.encode(row.prompt, raw=True)
        rows.append(Exchange(asked, codec.encode_answer(row.answer), row.answer))
    return rows
