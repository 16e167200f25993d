"""Text that a causal language model generates, as a kind of outputs (numpy)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from rmlora.errors import AdapterError
from rmlora.outputs import AnyArray, WithoutLabels
from rmlora.pooling import Pooling
from rmlora.scoring import Scoring

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.adapter import Adapter

__all__ = ["GeneratedText"]


class GeneratedText(WithoutLabels):
    """For every token of a row, one score per token of the vocabulary: which comes next.

    There are no labels: the output layer belongs to the base, and its names are the tokenizer's.
    """

    kind: ClassVar[Literal["text", "answer"]] = "text"
    pools = False
    route = "/v1/completions"
    train_defaults: ClassVar[Mapping[str, Any]] = {"best_metric": "loss", "max_length": 1024, "group_by_length": True}
    train_settings = frozenset(
        {
            "messages_column", "prompt_column", "completion_column", "raw", "skip_long", "metric", "max_new_tokens",
            "packing", "load_in_4bit",
        }
    )  # fmt: skip
    best_metrics = ("loss", "exact_match", "json", "rougeL")

    def depends_on(self, module: str, pooling: Pooling | None = None) -> bool:
        """Return True: the next token can depend on any module."""
        return True

    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Refuse modules saved in full, such as the output layer: only low-rank updates can be switched."""
        if adapter.modules_to_save:
            raise AdapterError(
                f"'{name}' contains '{next(iter(adapter.modules_to_save))}' in full, but a graph for text-generation switches "
                "only low-rank updates: merge it into its base with rmlora-deploy merge."
            )

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return the logits of all tokens, ``[rows, tokens, vocabulary]``."""
        logits: Tensor = output.logits.float()
        return logits

    def agreement(self, expected: AnyArray, got: AnyArray, scoring: Scoring | None = None) -> dict[str, float]:
        """Return ``argmax_agreement``: the share of tokens after which the same token is the likeliest."""
        same = (expected.argmax(-1) == got.argmax(-1)) & np.isfinite(got).all(-1)
        return {"argmax_agreement": float(same.mean())}
