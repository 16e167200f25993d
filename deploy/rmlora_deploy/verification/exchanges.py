"""What is asked and what answers it, read from a user's instruction data as tokens."""

from __future__ import annotations

from typing import NamedTuple

from rmlora.errors import ConfigError, InputError
from rmlora.training.conversations import TextColumns
from rmlora.training.data import Columns
from rmlora_deploy.bundles.text_codec import TextCodec
from rmlora_deploy.inference.questions import Question, read_questions

__all__ = ["Exchange", "check_columns", "read_exchanges"]


class Exchange(NamedTuple):
    """One row of instruction data."""

    asked: list[int]
    """Tokens of the prompt; of the whole text, for a plain one."""
    answer: list[int]
    """Tokens of the answer; none for a plain text."""
    text: str
    """The answer as it stands in the data; empty for a plain text."""


def check_columns(columns: Columns) -> None:
    """Raise :class:`ConfigError` for the name of a column that instruction data do not have."""
    for flag, name in (("--label-column", columns.label), ("--pair-column", columns.pair)):
        if name is not None:
            raise ConfigError(
                f"{flag} is of labeled data, and a language model is asked chats, prompts with completions, or texts: leave it out, "
                "and give those columns their usual names."
            )


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
    questions = read_questions(source, TextColumns(text=columns.inputs), plain_texts=True)
    return [_exchange(codec, question, raw=raw) for question in questions]


def _exchange(codec: TextCodec, question: Question, *, raw: bool) -> Exchange:
    try:
        asked = codec.encode(question.prompt, raw=raw or question.reference is None)
    except InputError as error:
        raise InputError(f"{question.name} cannot be asked. {error}") from None
    if question.reference is None:
        return Exchange(asked, [], "")
    return Exchange(asked, codec.encode_answer(question.reference), question.reference)
