"""Prompts with right answers, read from instruction data, to ask language models."""

from __future__ import annotations

from dataclasses import dataclass

from rmlora.errors import InputError
from rmlora.training.conversations import TextColumns, read_conversations, usual_names
from rmlora.training.sources import open_table
from rmlora.training.table import Reading
from rmlora_deploy.bundles.text_codec import Prompt

__all__ = ["Question", "read_questions"]


@dataclass(frozen=True)
class Question:
    """What is asked, and what would be right."""

    prompt: Prompt
    reference: str | None = None
    """The right answer; None if it is not known, and for a plain text."""
    name: str = "The prompt"
    """How an error names it: ``Line 7 of test.jsonl``."""

    @property
    def text(self) -> str:
        """What is asked as people read it: of a chat, the last message."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1].get("content") or "")


def read_questions(source: str, columns: TextColumns, *, plain_texts: bool = False) -> list[Question]:
    """Read chats, or prompts with their answers; what is asked of a chat is everything before its last answer.

    Args:
        source: csv, tsv, jsonl or parquet file, or hub data set, as ``rmlora-deploy train`` takes it.
        columns: names of its columns.
        plain_texts: True takes texts that nothing answers, too, and returns each as what is asked.

    Raises:
        InputError: the data cannot be read, or holds plain texts where prompts are needed, or an answer that is no text.
    """
    wanted = usual_names() | {name.lower() for name in vars(columns).values() if name}
    reading = Reading(skip_empty=True)
    data = read_conversations(open_table(source, wanted, reading), source, columns, reading)
    if data.form == "text" and plain_texts:
        return [Question(row.completion, name=data.name(row)) for row in data.rows]
    if data.form == "text":
        raise InputError(
            f"{source} holds plain texts, which no answer is right for: give prompts with completions, or chats."
        )
    if silent := next((row for row in data.rows if not row.answer), None):
        raise InputError(
            f"{data.name(silent)} is answered with tool_calls alone, which no text can be compared with: leave the row out."
        )
    return [
        Question(list(row.messages[:-1]) if row.messages else row.prompt, row.answer, data.name(row))
        for row in data.rows
    ]
