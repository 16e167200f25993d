"""A question with its context as rows of a model: a long context is read in windows that overlap (no torch).

Token types are 0 throughout: PEFT's models for QUESTION_ANS do not pass them on, so adapters are trained without.

Every window has the whole question and as many tokens of the context as fit; the next one begins so that both share
:data:`OVERLAP` tokens, or half a window if that is less. So an answer that one window cuts is whole in another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rmlora.errors import InputError
from rmlora.inputs import Arrays
from rmlora.library_calls import library_call
from rmlora.long_pairs import FilledPair, fill_pair, own_tokenizer
from rmlora.offsets import OFFSETS, trimmed
from rmlora.text_pair import TextPair
from rmlora.wording import counted

__all__ = ["CONTEXT", "OVERLAP", "SOURCES", "SPECIAL", "Window", "windows_of"]

SOURCES = "sequence_ids"
"""Key of a row's array ``[tokens]``: which text a token is of, 0 the question and 1 the context; -1 for special tokens."""
SPECIAL, CONTEXT = -1, 1
OVERLAP = 128
"""Tokens that two neighboring windows share, as in the scripts for SQuAD."""

_LEAST_SHARE = 4
"""A question leaves at least this part of a row, one fourth, to its context."""


class Window(TextPair):
    """A question and its context, of which one row reads a part."""

    arrays: Arrays
    """``[tokens]`` by name, with :data:`SOURCES`, and ``offset_mapping [tokens, 2]``: the characters of the context that a token
    stands for, (0, 0) for all other tokens."""

    @classmethod
    def of(cls, pair: TextPair, arrays: Arrays) -> Window:
        """Return a window of ``pair``."""
        made = cls(*pair)
        made.arrays = arrays
        return made


def windows_of(tokenizer: Any, pair: TextPair, limit: int) -> list[Window]:
    """Return the windows of a question (``first``) and its context (``second``), in order; at least one.

    Args:
        tokenizer: transformers' fast one, or :class:`rmlora.plain_tokenizer.PlainTokenizer`.
        pair: neither text is empty.
        limit: tokens of a row, special ones included.

    Raises:
        InputError: the question leaves too little room for its context, or a text has no tokens.
    """
    with library_call(lambda reason: InputError(f"The tokenizer cannot split the texts ({reason}).")):
        own = own_tokenizer(tokenizer)
        own.no_truncation()
        own.no_padding()
        pattern = own.encode("a", "a")
        question, context = (own.encode(text, add_special_tokens=False) for text in pair)
    for what, made in (("question", question), ("context", context)):
        if not made.ids:
            raise InputError(f"The {what} {pair[what == 'context'][:40]!r} has no tokens: there is nothing to read.")
    room = limit - len(question.ids) - sum(source is None for source in pattern.sequence_ids)
    if room < min(len(context.ids), max(1, limit // _LEAST_SHARE)):
        raise InputError(
            f"The question {pair.first[:40]!r}… has {counted(len(question.ids), 'token')} of the {limit} that the model reads at once, "
            "which leaves too little room for its context: shorten the question."
        )
    offsets, step = trimmed(np.asarray(context.offsets), pair.second), room - min(OVERLAP, room // 2)
    windows = []
    for start in range(0, max(1, len(context.ids) - room + step), step):
        part = slice(start, start + room)
        tokens = fill_pair(pattern, [question.ids, context.ids[part]])
        windows.append(Window.of(pair, _arrays(tokens, offsets[part])))
    return windows


def _arrays(tokens: FilledPair, offsets: np.ndarray) -> Arrays:
    sources = np.array([SPECIAL if source is None else source for source in tokens.sources], np.int64)
    located = np.zeros((len(sources), 2), np.int64)
    located[sources == CONTEXT] = offsets
    return {
        "input_ids": np.array(tokens.ids, np.int64),
        "attention_mask": np.ones(len(sources), np.int64),
        "token_type_ids": np.zeros(len(sources), np.int64),
        OFFSETS: located,
        SOURCES: sources,
    }
