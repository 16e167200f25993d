"""Rows for models with encoder and decoder: prompts, which the encoder reads, and answers, which the decoder learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rmlora.errors import InputError
from rmlora.training.conversations import Conversations
from rmlora.wording import counted, numbers

__all__ = ["AnswerRow", "EncodedAnswers", "encode_answers"]


@dataclass(frozen=True)
class AnswerRow:
    """One training row."""

    prompt: list[int]
    answer: list[int]
    """Its tokens, the one that ends it included."""


@dataclass(frozen=True)
class EncodedAnswers:
    """The rows of one split."""

    rows: list[AnswerRow]
    references: list[str]
    """The answers as they stand in the data."""
    notes: tuple[str, ...]

    @property
    def prompts(self) -> list[list[int]]:
        """Tokens of every prompt."""
        return [row.prompt for row in self.rows]


def encode_answers(
    data: Conversations, tokenizer: Any, *, end: int, max_length: int, skip_long: bool
) -> EncodedAnswers:
    """Turn prompts and their answers into tokens; longer prompts are cut at their end.

    Args:
        data: of the split.
        tokenizer: of the base.
        end: the end-of-text token, which ends every answer, also where the tokenizer does not write it.
        max_length: most tokens of a prompt, and of an answer.
        skip_long: leave out rows whose answer is longer; False refuses them.

    Raises:
        InputError: the data are chats or plain texts, or an answer is too long.
    """
    if data.form != "completion":
        held = "messages" if data.form == "messages" else "plain texts without answers"
        raise InputError(
            f"{data.source} holds {held}, but a model with encoder and decoder learns to answer single prompts: give columns prompt "
            "and completion (--prompt-column, --completion-column)."
        )
    rows, references, long, cut = [], [], [], 0
    for row in data.rows:
        prompt = list(tokenizer(row.prompt)["input_ids"])
        answer = list(tokenizer(text_target=row.completion)["input_ids"])
        if end not in answer:
            answer.append(end)
        if len(answer) > max_length:
            long.append(row.number)
            continue
        if len(prompt) > max_length:
            cut += 1
            prompt = list(tokenizer(row.prompt, truncation=True, max_length=max_length)["input_ids"])
        rows.append(AnswerRow(prompt, answer))
        references.append(row.answer)
    notes = [*data.notes, *_about_lengths(data, long, cut, max_length, skip_long=skip_long)]
    if not rows:
        raise InputError(f"No answer of {data.source} fits into {counted(max_length, 'token')}: raise --max-length.")
    return EncodedAnswers(rows, references, tuple(notes))


def _about_lengths(data: Conversations, long: list[int], cut: int, max_length: int, *, skip_long: bool) -> list[str]:
    """Return sentences about rows that were left out and cut; raise :class:`InputError` if they may not be left out."""
    notes = []
    if long:
        one = len(long) == 1
        what = (
            f"{data.unit}{'' if one else 's'} {numbers(long)} of {data.source} {'has an answer' if one else 'have answers'} of more "
            f"than {counted(max_length, 'token')}"
        )
        if not skip_long:
            raise InputError(
                f"{what[0].upper()}{what[1:]}: raise --max-length, or leave {'it' if one else 'them'} out with --skip-long."
            )
        notes.append(f"Left out {counted(len(long), 'row')}: {what}.")
    if cut:
        notes.append(
            f"{counted(cut, 'prompt')} of {data.source} {'is' if cut == 1 else 'are'} longer than {counted(max_length, 'token')} and "
            "cut at the end: raise --max-length."
        )
    return notes
