"""Texts whose words are labeled one by one (no torch): the tokens of a row know which characters and word they stand for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora.inputs import Arrays
from rmlora.offsets import OFFSETS, require_offsets, trimmed
from rmlora.single_text_inputs import SingleTextInputs
from rmlora.words import Sentence

if TYPE_CHECKING:
    from rmlora.training.features import Examples

__all__ = ["WORDS", "TokenInputs", "first_tokens"]

WORDS = "word_numbers"
"""Key of a row's array ``[tokens]``: the index of the word that a token belongs to; -1 for special tokens."""


class TokenInputs(SingleTextInputs):
    """Texts, or lists of words, which are joined by spaces.

    Rows have two arrays that are no inputs of a graph: ``offset_mapping [tokens, 2]``, the characters of each token, and
    :data:`WORDS`. Batches are padded on the right, so a row's tokens are the first ones of its output.
    """

    column_names = ("tokens", "words", "text", "sentence", "content")
    columns_compete = False
    pads_right = True
    marks = (OFFSETS, WORDS)

    def is_empty(self, value: Any) -> bool:
        """Return True unless ``value`` is a text, or a list of words, with a character other than white space."""
        if isinstance(value, Sentence):
            return super().is_empty(value.text)
        if isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value):
            return super().is_empty(" ".join(value))
        return super().is_empty(value)

    def locate(self, value: Any, source: str) -> Any:
        """Return ``value``: the cell contains the text, or its words."""
        return value

    def load_processor(self, directory: Path, *, trust_remote_code: bool = False) -> Any:
        """Return the tokenizer in ``directory``.

        Raises:
            CheckpointError: there is none, or it does not say which characters its tokens stand for.
        """
        tokenizer = super().load_processor(directory, trust_remote_code=trust_remote_code)
        require_offsets(tokenizer, directory, need="labels of words")
        return tokenizer

    def rows(
        self, processor: Any, inputs: Sequence[Any], *, lengths: Sequence[int | None], names: Sequence[str]
    ) -> list[Arrays]:
        """Return int64 arrays ``[tokens]`` for each text or list of words, its offsets and :data:`WORDS`."""
        sentences = [Sentence.of(value) for value in inputs]
        texts = [sentence.text for sentence in sentences]
        with_offsets = partial(processor, return_offsets_mapping=True)
        made = super().rows(with_offsets, texts, lengths=lengths, names=[*names, OFFSETS])
        for row, sentence in zip(made, sentences, strict=True):
            row[OFFSETS] = offsets = trimmed(row[OFFSETS], sentence.text)
            row[WORDS] = _word_numbers(offsets, sentence)
        return made

    def examples(self, inputs: Sequence[Any], labels: Sequence[Any], processor: Any, max_length: int) -> Examples:
        """Return tagged texts, tokenized once; ``labels`` are the numbers of each text's tags, word by word."""
        from rmlora.training.tagged_rows import TaggedRows

        return TaggedRows(inputs, labels, self, processor, max_length)


def first_tokens(row: Arrays) -> npt.NDArray[np.int64]:
    """Return the indices of the tokens with which the words of a row begin; words without a token of their own have none."""
    words = row[WORDS].astype(np.int64)
    before = np.concatenate([[-1], words[:-1]])
    return np.flatnonzero((words >= 0) & (words > np.maximum.accumulate(before))).astype(np.int64)


def _word_numbers(offsets: npt.NDArray[np.int64], sentence: Sentence) -> npt.NDArray[np.int64]:
    starts = [start for start, _ in sentence.words]
    numbers = np.full(len(offsets), -1, np.int64)
    for token, (start, stop) in enumerate(offsets.tolist()):
        word = bisect_right(starts, start) - 1
        if stop > start and word >= 0 and start < sentence.words[word][1]:
            numbers[token] = word
    return numbers
