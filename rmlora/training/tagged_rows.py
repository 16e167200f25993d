"""Torch dataset of tagged texts, the loss over their words, and what an evaluation keeps of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rmlora.inputs import Arrays
from rmlora.tokenized_texts import check_room
from rmlora.training.ignored import IGNORED
from rmlora.training.language_rows import LearnedRows, Row, padded

if TYPE_CHECKING:
    from rmlora.token_inputs import TokenInputs
    from rmlora.words import Sentence

__all__ = ["TaggedRows", "kept_of_scores", "tag_loss"]


class TaggedRows(LearnedRows):
    """Texts, tokenized once. The first token of a word has its tag; nothing is learned for all other tokens.

    Args:
        sentences: texts with their words.
        tags: the number of every word's tag.
        inputs: of the task.
        tokenizer: of the base.
        max_length: tokens that texts are cut to.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        tags: Sequence[Sequence[int]],
        inputs: TokenInputs,
        tokenizer: Any,
        max_length: int,
    ) -> None:
        from rmlora.token_inputs import WORDS, first_tokens

        check_room(tokenizer, max_length)
        self._inputs, self._tokenizer = inputs, tokenizer
        self._names = list(tokenizer.model_input_names)
        limits = [max_length] * len(sentences)
        rows: list[Row] = []
        self.cut_words, self.cut_texts, self.wordless = 0, 0, 0
        """Words beyond ``max_length``, texts that have such words, and words without a token of their own."""
        made = inputs.rows(tokenizer, sentences, lengths=limits, names=self._names)
        for arrays, sentence, numbers in zip(made, sentences, tags, strict=True):
            first = first_tokens(arrays)
            words = arrays[WORDS][first].astype(np.int64)
            labels = np.full(inputs.tokens(arrays), IGNORED, np.int64)
            labels[first] = np.asarray(numbers, np.int64)[words]
            rows.append({**{name: arrays[name] for name in self._names}, "labels": labels.tolist()})
            self._count(len(sentence.words), words.tolist(), cut=len(labels) >= max_length)
        super().__init__(rows)

    def _count(self, words: int, read: Sequence[int], *, cut: bool) -> None:
        beyond = words - (max(read) + 1 if read else 0) if cut else 0
        self.cut_words += beyond
        self.cut_texts += beyond > 0
        self.wordless += words - beyond - len(read)

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return the model's inputs and ``labels``, each int64 ``[rows, tokens]``."""
        arrays: list[Arrays] = [{name: row[name] for name in self._names} for row in rows]
        batch = {name: torch.from_numpy(array) for name, array in self._inputs.collate(self._tokenizer, arrays).items()}
        return {**batch, "labels": padded([row["labels"] for row in rows], IGNORED)}


def tag_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Return the mean cross-entropy per word of an optimizer step, under accumulation and data parallelism too.

    Args:
        outputs: of the model, logits ``[rows, tokens, labels]``.
        labels: ``[rows, tokens]``: the number of the tag, or :data:`IGNORED` where nothing is learned.
        num_items_in_batch: words of the whole step, all forward passes and processes; None for those of ``labels``.
    """
    learned = labels != IGNORED
    total = torch.nn.functional.cross_entropy(outputs.logits[learned].float(), labels[learned], reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else max(int(learned.sum()), 1))


def kept_of_scores(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return for every token the likeliest label and the loss, float32 ``[rows, tokens, 2]``: all that an evaluation needs."""
    scores = (logits[0] if isinstance(logits, tuple) else logits).float()
    losses = torch.nn.functional.cross_entropy(
        scores.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
    )
    return torch.stack([scores.argmax(-1).float(), losses.view(labels.shape)], -1)
