"""Prompts of several lengths to compare a language model on, and the text whose perplexity is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmlora.sample_data import SENTENCES
from rmlora.training.data import Columns
from rmlora_deploy.bundles.text_codec import TextCodec
from rmlora_deploy.verification.exchanges import read_exchanges
from rmlora_deploy.verification.perplexity import Window

__all__ = ["DecoderSamples", "decoder_samples"]

_LENGTHS = (1, 5, 17, 40, 96, 200)
"""Tokens of the prompts that are cut from the built-in text, the last as long as it goes."""
_MOST_PROMPTS = 6
_MOST_TEXTS = 64
_WINDOW = 512
"""Tokens that are predicted with one context."""
_MOST_TOKENS = 4096
"""Tokens whose perplexity is measured."""

_BUILT_IN = """The river rises in the hills behind the old monastery, where three springs meet under the roots of a beech. For the
first few miles it is hardly wider than a man can jump, and the sheep drink from both banks. Below the mill, which has not
ground any corn since the war, it turns east and slows down. Boats could go up as far as the bridge in those days; the
harbor master kept a book in which he wrote their names, what they carried, and how much they paid. My grandmother, who
was born in the house next to his, remembered the smell of tar and oranges. When the railway came, the boats stopped
coming, and within ten years the quay was a meadow. The town council has discussed several times whether to dig it out
again. An engineer from the capital said that it would cost four million, and that nobody would use it. Still, every
spring the water reminds people where it used to stand: it fills the cellars on the north side of the market square, and
the fire brigade pumps for two days. Children sail paper ships across the flooded parking lot. The baker puts planks in
front of his door and sells rolls from the window. By Easter everything is dry, and the swallows are back."""


@dataclass(frozen=True)
class DecoderSamples:
    """Tokens to compare on."""

    prompts: list[list[int]]
    source: str
    """Name of the data, or ``built-in text``."""
    windows: list[Window]
    """Texts whose perplexity is measured, each at most as long as one context."""


def decoder_samples(
    codec: TextCodec, source: str | None, columns: Columns, *, context_length: int, new_tokens: int, raw: bool = False
) -> DecoderSamples:
    """Return prompts and texts: of ``source``, or built in.

    Args:
        codec: tokenizer of the model.
        source: data of the user's; None for built-in texts.
        columns: names of its columns.
        context_length: tokens that the model holds.
        new_tokens: tokens that prompts are continued by.
        raw: prompts of the data are continued as they are, even if the model has a chat template.

    Raises:
        InputError: the data cannot be used.
    """
    longest = max(1, context_length - new_tokens)
    if source is None:
        text = codec.encode(_BUILT_IN, raw=True)
        spoken = [codec.encode(sentence)[:longest] for sentence in SENTENCES[1:3]]
        prompts = [
            *(text[: min(length, longest)] for length in _LENGTHS[:4]),
            *spoken,
            text[: min(_LENGTHS[-1], longest)],
        ]
        return DecoderSamples(_different(prompts), "built-in text", _windows([([], text)], context_length))
    rows = read_exchanges(codec, source, columns, raw=raw)
    chosen = np.linspace(0, len(rows) - 1, min(_MOST_PROMPTS, len(rows))).round().astype(int)
    return DecoderSamples(
        _different([rows[number].asked[-longest:] for number in chosen]),
        Path(source).name,
        _windows(
            [(row.asked if row.answer else [], row.answer or row.asked) for row in rows[:_MOST_TEXTS]], context_length
        ),
    )


def _different(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the prompts without repetitions and without empty ones."""
    return [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts)) if prompt]


def _windows(texts: Sequence[tuple[list[int], list[int]]], context_length: int) -> list[Window]:
    """Return texts, each with what is asked before it, cut into windows, up to a number of tokens in all."""
    size, left = min(_WINDOW, context_length), _MOST_TOKENS
    found: list[Window] = []
    for asked, text in texts:
        whole, start = asked + text, max(1, len(asked))
        for begin in range(0, len(whole), size):
            part = whole[begin : begin + min(size, left)]
            first = max(1, start - begin)
            if len(part) > first:
                found.append(Window(part, first))
                left -= len(part)
            if left < 2:  # a single token predicts none
                return found
    return found
