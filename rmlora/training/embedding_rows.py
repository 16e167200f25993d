"""Torch dataset of rows of texts, and the loss over their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rmlora.inputs import Inputs
from rmlora.outputs import Outputs
from rmlora.pooling import Pooling
from rmlora.tokenized_texts import check_room
from rmlora.training.language_rows import Row, TokenRows

__all__ = ["EmbeddingRows", "VectorLoss"]


class EmbeddingRows(TokenRows):
    """Rows of as many texts each, tokenized once.

    A batch has all texts as rows of their own: all first ones, then all second ones, and so on.

    Args:
        texts: of every row.
        targets: of every row.
        inputs: of the task.
        tokenizer: of the base.
        max_length: tokens that texts are cut to.

    Raises:
        InputError: a text has no tokens or is not valid Unicode.
    """

    def __init__(
        self, texts: Sequence[Sequence[str]], targets: Sequence[Any], inputs: Inputs, tokenizer: Any, max_length: int
    ) -> None:
        check_room(tokenizer, max_length)
        self._inputs, self._tokenizer = inputs, tokenizer
        names, limits = list(tokenizer.model_input_names), [max_length] * len(texts)
        columns = [inputs.rows(tokenizer, column, lengths=limits, names=names) for column in zip(*texts, strict=True)]
        rows = zip(zip(*columns, strict=True), targets, strict=True)
        super().__init__([{"texts": arrays, "labels": target} for arrays, target in rows])

    @property
    def lengths(self) -> list[int]:
        """Number of tokens in the longest text of every row."""
        return [max(self._inputs.tokens(arrays) for arrays in row["texts"]) for row in self._rows]

    @property
    def highest_token(self) -> int:
        """The highest number of a token in all texts."""
        return max(int(max(arrays["input_ids"])) for row in self._rows for arrays in row["texts"])

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return the model's inputs, int64 ``[texts of a row · rows, tokens]``, and ``labels`` ``[rows]`` or ``[rows, 2]``."""
        columns = zip(*(row["texts"] for row in rows), strict=True)
        batch = self._inputs.collate(self._tokenizer, [arrays for column in columns for arrays in column])
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        return {
            "labels": torch.tensor([row["labels"] for row in rows]),
            **tensors,
        }  # first: it tells how many rows there are


@dataclass(frozen=True)
class VectorLoss:
    """The loss of a batch of :class:`EmbeddingRows`."""

    criterion: Any
    """A loss module of sentence-transformers."""
    outputs: Outputs
    pooling: Pooling

    def vectors(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the vectors of all texts, float32 ``[texts of a row, rows, width]``."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        pooled = self.outputs.of_model(model(**inputs), inputs, self.pooling)
        return pooled.view(-1, len(batch["labels"]), pooled.shape[-1])

    def of_vectors(self, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of vectors ``[texts of a row, rows, width]``."""
        loss: torch.Tensor = self.criterion.compute_loss_from_embeddings(list(vectors), labels)
        return loss

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of a batch."""
        return self.of_vectors(self.vectors(model, batch), batch["labels"])
