"""Where an answer begins and ends in its context, as a kind of outputs (numpy)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rmlora.answer_spans import scored_tokens
from rmlora.errors import AdapterError
from rmlora.heads import head_outputs, other_head
from rmlora.inputs import Arrays
from rmlora.outputs import AnyArray
from rmlora.pooling import Pooling
from rmlora.scoring import ProblemType, Scoring
from rmlora.token_labels import TokenLabels

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.adapter import Adapter

__all__ = ["SpanScores"]

_NAMES = ("start", "end")


class SpanScores(TokenLabels):
    """For every token of a row two scores: that an answer begins with it, and that one ends with it.

    Outputs are ``[rows, tokens, 2]``; transformers' models and other exporters give the two as outputs of their own, ``start_logits``
    and ``end_logits``.
    """

    kind = "spans"
    fixed_labels = _NAMES
    graph_outputs = ("start_logits", "end_logits")
    route = "/predict"
    train_defaults: ClassVar[Mapping[str, Any]] = {"best_metric": "f1", "max_length": 384, "group_by_length": False}
    train_settings = frozenset({"label_column"})
    best_metrics = ("f1", "exact_match", "loss")

    def head_options(self, labels: Sequence[str], problem_type: ProblemType | None = None) -> dict[str, Any]:
        """Return the number of scores; a head of another size is initialized anew."""
        return {"num_labels": len(_NAMES), "ignore_mismatched_sizes": True}

    def labels_of(self, adapter: Adapter, config: Mapping[str, Any]) -> list[str]:
        """Return the names of the two scores."""
        if head_outputs(adapter) not in (None, len(_NAMES)):
            raise AdapterError(
                f"{adapter.source} has a head with {head_outputs(adapter)} outputs, where answers need two: the beginning and the end."
            )
        if adapter.peft_config.get("task_type") is None and int(config.get("type_vocab_size") or 0) > 1:
            raise AdapterError(
                f"{adapter.source} does not have PEFT's task type QUESTION_ANS, so in training its model was told which tokens are the "
                "question's; PEFT's models for QUESTION_ANS are not, and neither are graphs made here: train it again with task_type."
            )
        if self.count(adapter, config) is None:
            raise AdapterError(
                f"{adapter.source} contains no head for answers in a text, and neither does its base: train it again with the head "
                "among modules_to_save."
            )
        return list(_NAMES)

    def count(self, adapter: Adapter, config: Mapping[str, Any]) -> int | None:
        """Return two, if the adapter or its base has a head."""
        return head_outputs(adapter) or len(self.labels_in(config)) or None

    def labels_in(self, config: Mapping[str, Any]) -> list[str]:
        """Return the names of the two scores if the base is a model for answers in a text."""
        return list(_NAMES) if any("ForQuestionAnswering" in str(n) for n in config.get("architectures") or ()) else []

    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Refuse an adapter with the head of another task; one without a head uses the base's."""
        if (found := other_head(adapter, except_for="qa_outputs")) is not None:
            name, purpose = found
            raise AdapterError(
                f"{adapter.source} contains '{name}', a head for {purpose}: it cannot be used for {task}."
            )

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return both scores of every token, zero where a row has padding."""
        import torch

        scores = torch.stack([output.start_logits, output.end_logits], dim=-1).float()
        mask = inputs.get("attention_mask")
        return scores if mask is None else scores.masked_fill(mask[..., None] == 0, 0.0)

    def of_row(self, output: AnyArray, row: Arrays) -> AnyArray:
        """Return where the tokens of the context stand, with their scores (:func:`rmlora.answer_spans.scored_tokens`)."""
        return scored_tokens(output, row)

    def of_parts(self, parts: Sequence[AnyArray]) -> Any:
        """Return the windows of an input."""
        return list(parts)

    def agreement(self, expected: AnyArray, got: AnyArray, scoring: Scoring | None = None) -> dict[str, float]:
        """Return nothing: what is chosen is a span of tokens, not one of two scores."""
        return {}
