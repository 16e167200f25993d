"""A label for every token of a text, as a kind of outputs (numpy)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from rmlora.inputs import Arrays
from rmlora.outputs import AnyArray, ClassScores
from rmlora.pooling import Pooling
from rmlora.scoring import ProblemType, Scoring, scoring_of
from rmlora.token_inputs import WORDS, first_tokens

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TokenLabels"]


class TokenLabels(ClassScores):
    """For every token of a row, one score per label; the label of a word is that of its first token.

    Outputs are ``[rows, tokens, labels]``. Tokens of padding never count: they are zero in PyTorch's outputs, and left out
    wherever two outputs are compared.
    """

    kind: ClassVar[Literal["scores", "tokens", "spans"]] = "tokens"
    axes = 3
    route = "/predict"
    train_defaults: ClassVar[Mapping[str, Any]] = {"best_metric": "f1", "max_length": 256, "group_by_length": False}
    train_settings = frozenset({"label_column", "labels"})
    best_metrics = ("f1", "accuracy", "loss")

    def head_options(self, labels: Sequence[str], problem_type: ProblemType | None = None) -> dict[str, Any]:
        """Return number and names of the labels; every token has exactly one."""
        return super().head_options(labels)

    def scoring(self, problem: str | None, labels: Sequence[str], threshold: float | None = None) -> Scoring | None:
        """Return one label out of several, whatever a base's configuration says of other tasks."""
        return scoring_of("softmax", max(2, len(labels)))

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return the logits, zero where a row has padding."""
        logits: Tensor = output.logits.float()
        mask = inputs.get("attention_mask")
        return logits if mask is None else logits.masked_fill(mask[..., None] == 0, 0.0)

    def padding_zeroed(self, output: AnyArray, batch: Arrays) -> AnyArray:
        """Return the scores, zero where a row has padding."""
        mask = batch.get("attention_mask")
        return output if mask is None else np.where(np.asarray(mask, bool)[..., None], output, output.dtype.type(0))

    def without_padding(self, output: AnyArray, batch: Arrays) -> AnyArray:
        """Return the scores of all tokens of all rows, ``[tokens, labels]``."""
        mask = batch.get("attention_mask")
        return output.reshape(-1, output.shape[-1]) if mask is None else output[np.asarray(mask, bool)]

    def of_row(self, output: AnyArray, row: Arrays) -> AnyArray:
        """Return the scores of the words as far as the row goes, ``[words, labels]``; NaN for words without a token of their own."""
        first = first_tokens(row)
        words = row[WORDS][first].astype(np.int64)
        scores = np.full((int(words.max(initial=-1)) + 1, output.shape[-1]), np.nan)
        scores[words] = output[first]
        return scores
