"""From texts and pairs of texts to token ids, masks and types, with any tokenizer (no torch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora.library_calls import library_call
from rmlora.long_pairs import encode_pairs
from rmlora.text_pair import TextPair, form_of, texts_of
from rmlora.unicode_text import is_unicode

__all__ = ["check_room", "check_texts", "encode", "padding", "tokenize"]

_MOST_SHOWN = 40
"""Characters of a text that an error repeats."""


def check_texts(inputs: Sequence[Any]) -> None:
    """Raise :class:`InputError` naming the first input that is no text or pair of texts, is empty, or cannot be written."""
    for number, value in enumerate(inputs, 1):
        pair = isinstance(value, TextPair)
        if isinstance(value, (list, tuple)) and not pair:
            raise InputError(
                f"Input {number} is a list of {len(value)}: give one text, or two where the model reads pairs."
            )
        for position, text in zip(("first", "second"), texts_of(value) if pair else (value,), strict=False):
            what = f"The {position} text of pair {number}" if pair else f"Text {number}"
            if not (isinstance(text, str) and text.strip()):
                raise InputError(
                    f"{what} is empty: every {'text of a pair' if pair else 'input'} needs at least one word."
                )
            if not is_unicode(text):
                raise InputError(f"{what} is not valid Unicode: it has half of a surrogate pair.")


def check_room(tokenizer: Any, max_length: int, *, pairs: bool = False) -> None:
    """Raise :class:`ConfigError` if rows of ``max_length`` tokens have no room for a text, or for two, to train on."""
    added = int(tokenizer.num_special_tokens_to_add(pair=pairs))
    least = added + (2 if pairs else 1)
    if max_length < least:
        raise ConfigError(
            f"--max-length {max_length} leaves no room for {'two texts' if pairs else 'a text'}: the tokenizer adds {added} tokens of "
            f"its own, so take {least} or more."
        )


def tokenize(
    tokenizer: Any, inputs: Sequence[str | TextPair], lengths: Sequence[int | None], names: Sequence[str]
) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """Yield int64 ``[tokens]`` by name for each input; the longer text of a pair is truncated first.

    Consecutive inputs of one form and limit are tokenized together.

    Args:
        tokenizer: of the base.
        inputs: texts and pairs.
        lengths: for each the number of tokens to truncate it to; None for no limit.
        names: the arrays to make.

    Raises:
        InputError: an input has no tokens, or the tokenizer does not make an array.
    """
    keys = [(length, form_of([value])) for value, length in zip(inputs, lengths, strict=True)]
    start = 0
    while start < len(inputs):
        end = next((i for i in range(start, len(inputs)) if keys[i] != keys[start]), len(inputs))
        with library_call(lambda reason: InputError(f"The tokenizer cannot split the texts ({reason}).")):
            made = encode(tokenizer, inputs[start:end], lengths[start])
        # A tokenizer without types trained its model with all tokens of the first type, those of pairs too.
        if "token_type_ids" in names and "token_type_ids" not in made:
            made["token_type_ids"] = [[0] * len(ids) for ids in made["input_ids"]]
        missing = [name for name in names if name not in made]
        if missing:
            raise InputError(
                f"The tokenizer does not make '{missing[0]}', which the graph takes: the bundle is inconsistent."
            )
        for number, row in enumerate(zip(*(made[name] for name in names), strict=True), start):
            if not len(row[0]):
                raise InputError(
                    f"The text {_quoted(inputs[number])} has no tokens: the model's tokenizer drops all of its characters, so "
                    "there is nothing to answer."
                )
            yield {name: np.asarray(ids, np.int64) for name, ids in zip(names, row, strict=True)}
        start = end


def encode(tokenizer: Any, inputs: Sequence[str | TextPair], max_length: int | None) -> dict[str, list[list[int]]]:
    """Return input name → one list of numbers for each of ``inputs``, which have one form; None is the tokenizer's own limit."""
    pairs = [value for value in inputs if isinstance(value, TextPair)]
    if pairs:
        return encode_pairs(tokenizer, pairs, max_length)
    return dict(tokenizer(list(inputs), truncation=True, max_length=max_length))


def _quoted(value: str | TextPair) -> str:
    text = value if isinstance(value, str) else value.first
    return repr(text) if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]!r}…"


def padding(tokenizer: Any, name: str) -> int:
    """Return the number with which the array ``name`` is padded."""
    known = {"input_ids": "pad_token_id", "token_type_ids": "pad_token_type_id"}
    return int(getattr(tokenizer, known[name]) or 0) if name in known else 0
