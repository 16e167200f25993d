"""Kinds of outputs: scores for labels or one vector per row (numpy).

Every task has one (:mod:`rmlora.tasks`). It says what the head is, which labels and modules count, and how two outputs are
compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from rmlora.errors import AdapterError
from rmlora.pooling import Pooling, pool

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.adapter import Adapter

__all__ = ["ClassScores", "Outputs", "SentenceVector"]

AnyArray = npt.NDArray[Any]


class Outputs(ABC):
    """A kind of outputs. Instances have no state."""

    kind: ClassVar[Literal["scores", "vector"]]
    has_labels: ClassVar[bool]
    """True if outputs are scores for labels, so metrics can be measured on labeled data."""
    pools: ClassVar[bool]
    """True if the token vectors are pooled into one."""
    route: ClassVar[str]
    """HTTP path of the server that returns such outputs."""

    @abstractmethod
    def head_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of transformers' ``from_pretrained`` that concern the head."""

    @abstractmethod
    def labels_of(self, adapter: Adapter) -> list[str]:
        """Return the label names of ``adapter`` in the order of its outputs; empty if outputs have no labels.

        Raises:
            AdapterError: outputs have labels, but the adapter stores neither label names nor a head.
        """

    @abstractmethod
    def labels_in(self, config: Mapping[str, Any]) -> list[str]:
        """Return the label names in a base's ``config.json``."""

    @abstractmethod
    def depends_on(self, module: str) -> bool:
        """Return True if outputs can depend on the module at this path."""

    @abstractmethod
    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Raise :class:`AdapterError` if ``adapter`` was made for another kind of outputs."""

    @abstractmethod
    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Raise :class:`AdapterError` if a graph with branches cannot switch ``adapter`` at runtime."""

    @abstractmethod
    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return float32 ``[rows, labels]`` or ``[rows, width]`` from the output of a PyTorch model.

        Args:
            output: of the transformers model.
            inputs: of the model.
            pooling: how token vectors become one; None if nothing is pooled.
        """

    @abstractmethod
    def agreement(self, expected: AnyArray, got: AnyArray) -> dict[str, float]:
        """Return how well two outputs agree, as a comparison's field name → value.

        Args:
            expected: ``[rows, n]``, finite.
            got: the same shape; values that are not finite count as wrong.
        """


class ClassScores(Outputs):
    """One score per label (logits)."""

    kind = "scores"
    has_labels = True
    pools = False
    route = "/classify"

    def head_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the number and names of the labels; a head of another size is initialized anew."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,
        }

    def labels_of(self, adapter: Adapter) -> list[str]:
        """Return the recorded names, or ``LABEL_i`` for each output of the adapter's head."""
        if adapter.labels:
            return adapter.labels
        for name in _head_weights(adapter):
            return [f"LABEL_{index}" for index in range(adapter.modules_to_save[name].shape[0])]
        raise AdapterError(
            f"{adapter.source} stores neither label names nor a classifier head: it is not a classification adapter."
        )

    def labels_in(self, config: Mapping[str, Any]) -> list[str]:
        """Return the names in ``id2label``, by index."""
        names = config.get("id2label") or {}
        return [str(names[key]) for key in sorted(names, key=int)]

    def depends_on(self, module: str) -> bool:
        """Return True: scores can depend on any module."""
        return True

    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Accept every adapter: one without a head uses the base's."""

    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Accept every adapter: heads are LoRA inputs too."""

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return the logits."""
        logits: Tensor = output.logits.float()
        return logits

    def agreement(self, expected: AnyArray, got: AnyArray) -> dict[str, float]:
        """Return ``argmax_agreement``: the share of rows with the largest score at the same label."""
        same = (expected.argmax(-1) == got.argmax(-1)) & np.isfinite(got).all(-1)
        return {"argmax_agreement": float(same.mean())}


class SentenceVector(Outputs):
    """One vector per text, pooled from its token vectors."""

    kind = "vector"
    has_labels = False
    pools = True
    route = "/v1/embeddings"

    def head_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return nothing: there is no head."""
        return {}

    def labels_of(self, adapter: Adapter) -> list[str]:
        """Return no labels."""
        return []

    def labels_in(self, config: Mapping[str, Any]) -> list[str]:
        """Return no labels."""
        return []

    def depends_on(self, module: str) -> bool:
        """Return False for the model's pooler: vectors are pooled from the encoder's token vectors."""
        return module.partition(".")[0] != "pooler"

    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Refuse an adapter with a classifier head."""
        if head := next(_head_weights(adapter), None):
            raise AdapterError(
                f"{adapter.source} contains '{head}', the head of a classification adapter: it cannot be used for {task}."
            )

    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Refuse modules saved in full: only low-rank updates can be switched, as there is no head."""
        if adapter.modules_to_save:
            raise AdapterError(
                f"'{name}' contains '{next(iter(adapter.modules_to_save))}' in full, but a graph for embeddings switches only "
                "low-rank updates: export it with --mode merged."
            )

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return the pooled vectors of the last hidden state."""
        import torch

        hidden = output.last_hidden_state.float()
        mask = inputs.get("attention_mask", torch.ones(hidden.shape[:2], dtype=torch.int64))
        return pool(hidden, mask, pooling or Pooling())

    def agreement(self, expected: AnyArray, got: AnyArray) -> dict[str, float]:
        """Return ``min_cosine``: the smallest cosine between a row's two vectors; 0 if one is zero."""
        got = np.where(np.isfinite(got), got, 0.0)
        lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(got, axis=-1)
        cosines = (expected * got).sum(-1) / np.where(lengths > 0, lengths, 1.0)
        return {"min_cosine": float(cosines.min())}


def _head_weights(adapter: Adapter) -> Iterator[str]:
    """Yield the names of classifier head weights in ``adapter``, the last first."""
    for name in reversed(list(adapter.modules_to_save)):
        path = name.removesuffix(".weight").rstrip(".0123456789")  # ResNet's is classifier.1, after a Flatten
        if name.endswith(".weight") and path.rpartition(".")[2] in ("classifier", "score", "out_proj"):
            yield name
