"""Torch datasets of labeled model inputs, each with its collator: one for texts, one for images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset

from rmlora.images import open_image
from rmlora.text_pair import TextPair, form_of
from rmlora.tokenized_texts import check_room, encode
from rmlora.training.embedding_rows import EmbeddingRows
from rmlora.training.language_rows import AnswerRows, LanguageRows, Row, TokenRows
from rmlora.training.question_rows import QuestionRows
from rmlora.training.tagged_rows import TaggedRows

__all__ = ["Examples", "ImageExamples", "TextExamples"]


class TextExamples(TokenRows):
    """Texts, or pairs of texts, tokenized once; the collator pads each batch to its longest row."""

    def __init__(
        self, texts: Sequence[str] | Sequence[TextPair], labels: Sequence[Any], tokenizer: Any, max_length: int
    ) -> None:
        from transformers import DataCollatorWithPadding

        check_room(tokenizer, max_length, pairs=form_of(texts) == "pair")
        encoded = encode(tokenizer, texts, max_length)
        super().__init__(
            [{**{key: encoded[key][i] for key in encoded}, "labels": label} for i, label in enumerate(labels)]
        )
        self.collate = DataCollatorWithPadding(tokenizer)


class ImageExamples(Dataset[Row]):
    """Images, decoded and processed each time they are accessed.

    Raises:
        InputError: one cannot be decoded; all are tried at once, because the last may be needed only hours later.
    """

    def __init__(self, images: Sequence[Any], labels: Sequence[Any], processor: Any) -> None:
        self._images, self._labels, self._processor = list(images), list(labels), processor
        self.collate = _stack
        with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it decodes
            for _ in pool.map(self._try, range(len(self._images))):
                pass

    def _try(self, index: int) -> None:
        open_image(self._images[index], what=f"Image {index + 1} of {len(self._images)}")

    @property
    def labels(self) -> list[Any]:
        """Of every image."""
        return self._labels

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self._images)

    @property
    def longest(self) -> int:
        """Index of the first row: all have the same size."""
        return 0

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Row:
        pixels = self._processor(open_image(self._images[index]), return_tensors="np")["pixel_values"][0]
        return {"pixel_values": torch.from_numpy(pixels), "labels": self._labels[index]}


Examples: TypeAlias = (
    TextExamples | ImageExamples | LanguageRows | AnswerRows | TaggedRows | QuestionRows | EmbeddingRows
)


def _stack(rows: list[Row]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
