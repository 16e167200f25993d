"""From conversations to tokens: the base's chat template, and which tokens are the answer and carry the loss (no torch)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from rmlora.chat_messages import unwritten_calls
from rmlora.errors import InputError
from rmlora.library_calls import library_call
from rmlora.training.conversations import Conversation, Conversations, Message
from rmlora.wording import counted, numbers

__all__ = ["EncodedRow", "EncodedSplit", "PromptFormat", "encode_split", "end_token"]

_MARKERS = re.compile(r"\{%-?\s*generation\b")
"""How a chat template marks what the assistant says."""


@dataclass(frozen=True)
class EncodedRow:
    """One training row."""

    ids: list[int]
    """Tokens of the whole row."""
    answer: list[bool]
    """For each token whether it belongs to an answer, so whether predicting it is learned."""
    number: int
    """Line or row in the data."""


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of one split, cut to the longest length."""

    rows: list[EncodedRow]
    prompts: list[list[int]]
    """For each conversation whose last answer is a text that begins within the longest length the tokens before it, as a model
    is asked; none for plain texts."""
    references: list[str]
    """For each of the prompts its answer."""
    notes: tuple[str, ...]


class PromptFormat:
    """How a base is asked: with its chat template, or with the prompt as it stands.

    Args:
        tokenizer: of the base.
        base: name of the base, for errors.
        raw: do without the chat template.
    """

    def __init__(self, tokenizer: Any, base: str, *, raw: bool = False) -> None:
        self._tokenizer, self._base = tokenizer, base
        self._template = None if raw else _chat_template(tokenizer, base)
        self.end: int = end_token(tokenizer, base)
        """The end-of-text token."""
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self.special = frozenset({*special, *tokenizer.all_special_ids})

    @property
    def kind(self) -> Literal["chat", "raw"]:
        """``chat`` with the base's chat template, ``raw`` without."""
        return "raw" if self._template is None else "chat"

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the chat template; None without one."""
        return None if self._template is None else f"sha256:{sha256(self._template.encode()).hexdigest()}"

    def check(self, data: Conversations) -> None:
        """Raise :class:`InputError` if the data are chats and there is no template that turns them, whole, into text."""
        if data.form != "messages":
            return
        if self._template is not None:
            for row in data.rows:
                if place := unwritten_calls(row.messages, self._template):
                    raise InputError(
                        f"{data.name(row)} has a message {place} with tool_calls, which the base's chat template does not write: "
                        "write them as its content, or take a base made for tools."
                    )
            return
        if self._tokenizer.chat_template:
            raise InputError(
                f"{data.source} holds messages, which only the base's chat template turns into text: leave --raw out."
            )
        raise InputError(
            f"{data.source} holds messages, but the base {self._base} has no chat template that turns them into text: take a base "
            "made for chats (Instruct, Chat, -it), or give the data as prompt and completion."
        )

    def prompt(self, row: Conversation) -> list[int]:
        """Return the tokens before the last answer, as a model is asked."""
        if self._template is None:
            return self._prompt_tokens(row.prompt)
        return self._tokens(self._render(row.as_messages()[:-1], ask=True))

    def encode(self, row: Conversation) -> Iterator[EncodedRow]:
        """Yield the row's tokens.

        One row, except for templates that render an answer in another way once the chat goes on (Qwen3 drops its
        thoughts): then a row for every answer, each as the model sees it when it gives that answer.
        """
        if self._template is None:
            asked = self._prompt_tokens(row.prompt)
            ids = [*asked, *self._tokens(row.completion), self.end]
            yield EncodedRow(ids, [place >= len(asked) for place in range(len(ids))], row.number)
            return
        messages = row.as_messages()
        if _MARKERS.search(self._template):
            marked = self._marked(messages)
            if any(marked.answer):
                yield EncodedRow(marked.ids, marked.answer, row.number)
                return
        spans = [
            self._span(messages, place) for place, message in enumerate(messages) if message["role"] == "assistant"
        ]
        ids, _, end = spans[-1]
        if all(ids[:stop] == earlier for earlier, _, stop in spans[:-1]):
            yield EncodedRow(ids, _inside([(begin, stop) for _, begin, stop in spans], end), row.number)
            return
        for ids, begin, end in spans:
            yield EncodedRow(ids, _inside([(begin, end)], end), row.number)

    def encode_text(self, row: Conversation, max_length: int) -> Iterator[EncodedRow]:
        """Yield a plain text in pieces of at most ``max_length`` tokens; all are learned, the first has nothing before it."""
        ids = [*self._prompt_tokens(row.completion), self.end]
        for begin in range(0, len(ids), max_length):
            piece = ids[begin : begin + max_length]
            if len(piece) > 1:
                yield EncodedRow(piece, [False, *[True] * (len(piece) - 1)], row.number)

    def _span(self, messages: Sequence[Message], place: int) -> tuple[list[int], int, int]:
        """Return the tokens up to the answer at ``place``, and where it begins and ends, its end-of-turn token included.

        Where the template's next text grows together with the answer's first characters into one token, they are split as
        they are when the model is asked.
        """
        before, after = self._render(messages[:place], ask=True), self._render(messages[: place + 1])
        asked = self._tokens(before)
        if not after.startswith(before):
            raise InputError(
                "the base's chat template writes an answer otherwise than it asks for it, so its tokens cannot be told from the "
                "prompt's"
            )
        ids = self._tokens(after)
        if ids[: len(asked)] != asked:
            ids = [*asked, *self._tokens(after[len(before) :])]
        end = max((index + 1 for index in range(len(asked), len(ids)) if ids[index] in self.special), default=None)
        if end is None or self._tokenizer.decode(ids[end:]).strip():  # the template does not end a turn with a token
            text = after[len(before) :].rstrip()
            ids = [*asked, *self._tokens(text), self.end]
            return ids, len(asked), len(ids)
        return ids[:end], len(asked), end

    def _marked(self, messages: Sequence[Message]) -> EncodedRow:
        """Return the tokens and answers of a template that marks the answers itself."""
        made = self._tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return EncodedRow(list(made["input_ids"]), [bool(token) for token in made["assistant_masks"]], 0)

    def _render(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        return str(text)

    def _tokens(self, text: str) -> list[int]:
        """Return the tokens of a text that has its special tokens already."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text with the base's beginning-of-text token, without an end."""
        ids = list(self._tokenizer(text)["input_ids"])
        return ids[:-1] if ids and ids[-1] == self.end else ids


def encode_split(data: Conversations, form: PromptFormat, *, max_length: int, skip_long: bool) -> EncodedSplit:
    """Turn the rows of a split into tokens, cut at their end to ``max_length``; longer plain texts become several rows.

    Args:
        data: of the split.
        form: how the base is asked.
        max_length: most tokens of a row.
        skip_long: leave out rows none of whose answer is left; False refuses them.

    Raises:
        InputError: a row cannot be turned into text, or nothing is left of its answer.
    """
    form.check(data)
    rows: list[EncodedRow] = []
    prompts: list[list[int]] = []
    references: list[str] = []
    cut, gone = [], []
    for row in data.rows:

        def refuse(reason: str, row: Conversation = row) -> InputError:
            return InputError(f"{data.name(row)} does not fit the base's chat template: {reason}.")

        with library_call(refuse):
            try:
                made = list(form.encode_text(row, max_length) if data.form == "text" else form.encode(row))
                asked = [] if data.form == "text" else form.prompt(row)
            except InputError as error:
                raise refuse(str(error)) from None
        kept = [item for item in made if any(item.answer[:max_length])]
        if not kept:
            gone.append(row.number)
            continue
        if any(len(item.ids) > max_length for item in kept):
            cut.append(row.number)
        rows += [EncodedRow(item.ids[:max_length], item.answer[:max_length], item.number) for item in kept]
        if (
            asked and len(asked) < max_length and row.answer
        ):  # else only earlier answers are left, or it only calls tools
            prompts.append(asked)
            references.append(row.answer)
    notes = [*data.notes, *_about_lengths(data, cut, gone, max_length, skip_long=skip_long)]
    if not rows:
        raise InputError(f"No row of {data.source} fits into {counted(max_length, 'token')}: raise --max-length.")
    return EncodedSplit(rows, prompts, references, tuple(notes))


def _about_lengths(
    data: Conversations, cut: list[int], gone: list[int], max_length: int, *, skip_long: bool
) -> list[str]:
    """Return sentences about rows that were cut and left out; raise :class:`InputError` if they may not be left out."""
    notes = []
    if gone:
        one = len(gone) == 1
        what = (
            f"{data.unit}{'' if one else 's'} {numbers(gone)} of {data.source} {'has' if one else 'have'} no token of "
            f"{'its' if one else 'their'} answer within the first {counted(max_length, 'token')}"
        )
        if not skip_long:
            raise InputError(
                f"{what[0].upper()}{what[1:]}: raise --max-length, or leave {'it' if one else 'them'} out with --skip-long."
            )
        notes.append(f"Left out {counted(len(gone), 'row')}: {what}.")
    if cut:
        notes.append(
            f"{counted(len(cut), 'row')} of {data.source} {'is' if len(cut) == 1 else 'are'} longer than "
            f"{counted(max_length, 'token')} and cut at the end, so the end of the answer is not learned there: raise --max-length."
        )
    return notes


def _inside(spans: Sequence[tuple[int, int]], length: int) -> list[bool]:
    """Return for each of ``length`` tokens whether it lies in one of the spans."""
    inside = [False] * length
    for begin, end in spans:
        inside[begin:end] = [True] * (end - begin)
    return inside


def _chat_template(tokenizer: Any, base: str) -> str | None:
    if not tokenizer.chat_template:
        return None
    with library_call(lambda reason: InputError(f"The base {base} has no usable chat template ({reason}).")):
        return str(tokenizer.get_chat_template())


def end_token(tokenizer: Any, base: str) -> int:
    """Return the end-of-text token; raise :class:`InputError` if there is none."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"The tokenizer of the base {base} has no end-of-text token, so no answer could be ended.")
    return int(tokenizer.eos_token_id)
