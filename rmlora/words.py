"""The words of a text: those that data gives, else what stands between spaces and punctuation (no torch)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Sentence", "Span", "word_spans"]

Span: TypeAlias = tuple[int, int]
"""(start, stop) in characters of a text."""

_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""Code points of Chinese characters, each of which is a word: Chinese has no spaces between words."""


@dataclass(frozen=True)
class Sentence:
    """A text and where its words are."""

    text: str
    words: tuple[Span, ...]
    """In order; they do not overlap, and none is empty."""
    given: bool = False
    """True if the words were given, False if they are :func:`word_spans` of the text."""

    @classmethod
    def of(cls, value: str | Sequence[str] | Sentence) -> Sentence:
        """Return a text with its words, or given words with a space between every two."""
        if isinstance(value, Sentence):
            return value
        if isinstance(value, str):
            return cls(value, tuple(word_spans(value)))
        spans, start = [], 0
        for word in value:
            spans.append((start, start + len(word)))
            start += len(word) + 1
        return cls(" ".join(value), tuple(spans), given=True)


def word_spans(text: str) -> list[Span]:
    """Return the words of a text as BERT's tokenizers split it before they look into their vocabulary.

    White space ends a word; a punctuation mark, a symbol of ASCII or a Chinese character is a word by itself.
    """
    spans: list[Span] = []
    start: int | None = None
    for index, character in enumerate(text):
        if character.isspace():
            if start is not None:
                spans.append((start, index))
            start = None
        elif _stands_alone(character):
            if start is not None:
                spans.append((start, index))
            spans.append((index, index + 1))
            start = None
        elif start is None:
            start = index
    if start is not None:
        spans.append((start, len(text)))
    return spans


def _stands_alone(character: str) -> bool:
    if character.isascii():
        return not character.isalnum() and character.isprintable()
    code = ord(character)
    return unicodedata.category(character).startswith("P") or any(low <= code <= high for low, high in _IDEOGRAPHS)
