"""What a model says of a row, a score for each label or one vector, and how two such outputs are compared (numpy).

Every task has one of these (:mod:`rmlora.tasks`). What differs between tasks on the way out stands here: the head, the
labels, which modules matter, and what makes two outputs alike.
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
    """One kind of output."""

    kind: ClassVar[Literal["scores", "vector"]]
    has_labels: ClassVar[bool]
    """True if outputs are scores for labels, so that a metric can be measured on labeled data."""
    pools: ClassVar[bool]
    """True if the vectors of the tokens are pooled into one."""
    route: ClassVar[str]
    """HTTP path by which a server answers with such outputs."""

    @abstractmethod
    def head_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return what transformers' ``from_pretrained`` is told about the head."""

    @abstractmethod
    def labels_of(self, adapter: Adapter) -> list[str]:
        """Return the label names of ``adapter``, in the order of its outputs; empty where outputs have none.

        Raises:
            AdapterError: outputs have labels, and the adapter stores neither names nor a head.
        """

    @abstractmethod
    def labels_in(self, config: Mapping[str, Any]) -> list[str]:
        """Return the label names in a base's ``config.json``."""

    @abstractmethod
    def depends_on(self, module: str) -> bool:
        """Return True if an output can depend on the module at that path."""

    @abstractmethod
    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Raise :class:`AdapterError` if ``adapter`` was evidently made for another kind of output."""

    @abstractmethod
    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Raise :class:`AdapterError` if ``adapter`` cannot be one of several on a graph with branches."""

    @abstractmethod
    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return ``[rows, labels]`` or ``[rows, width]`` float32 from what a PyTorch model returns.

        Args:
            output: of the transformers model.
            inputs: that it was given.
            pooling: how token vectors become one; None where nothing is pooled.
        """

    @abstractmethod
    def agreement(self, expected: AnyArray, got: AnyArray) -> dict[str, float]:
        """Return the share of rows with the same first choice, or the least cosine, as field of a comparison → value.

        Args:
            expected: ``[rows, n]``, finite.
            got: the same shape; where it is not finite it counts as wrong.
        """


class ClassScores(Outputs):
    """A score for each label (logits)."""

    kind = "scores"
    has_labels = True
    pools = False
    route = "/classify"

    def head_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the number and names of the labels; a head of another size is made anew."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,
        }

    def labels_of(self, adapter: Adapter) -> list[str]:
        """Return the recorded names, or ``LABEL_i`` for as many outputs as the adapter's head has."""
        if adapter.labels:
            return adapter.labels
        for name in _head_weights(adapter):
            return [f"LABEL_{index}" for index in range(adapter.modules_to_save[name].shape[0])]
        raise AdapterError(
            f"{adapter.source} stores neither label names nor a classifier head: it is no classification adapter."
        )

    def labels_in(self, config: Mapping[str, Any]) -> list[str]:
        """Return ``id2label`` in order."""
        names = config.get("id2label") or {}
        return [str(names[key]) for key in sorted(names, key=int)]

    def depends_on(self, module: str) -> bool:
        """Return True: a head may read any module."""
        return True

    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Accept every adapter: one without a head answers with the base's."""

    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Accept every adapter: heads are LoRA inputs of their own size."""

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return the logits."""
        logits: Tensor = output.logits.float()
        return logits

    def agreement(self, expected: AnyArray, got: AnyArray) -> dict[str, float]:
        """Return ``argmax_agreement``: the share of rows whose largest score is at the same label."""
        same = (expected.argmax(-1) == got.argmax(-1)) & np.isfinite(got).all(-1)
        return {"argmax_agreement": float(same.mean())}


class SentenceVector(Outputs):
    """One vector for each text, pooled from the vectors of its tokens."""

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
        """Return False for the model's own pooler: vectors are made from the encoder's tokens."""
        return module.partition(".")[0] != "pooler"

    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Refuse an adapter with a classifier head."""
        if head := next(_head_weights(adapter), None):
            raise AdapterError(
                f"{adapter.source} brings '{head}', as adapters for classification do: it cannot be used for {task}."
            )

    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Refuse modules saved in full: the width of a vector is the base's, so no head can be switched."""
        if adapter.modules_to_save:
            raise AdapterError(
                f"'{name}' saved '{next(iter(adapter.modules_to_save))}' whole, and embeddings can be switched by low-rank "
                "updates only: export it with --mode merged."
            )

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return the pooled vectors of the last hidden state."""
        import torch

        hidden = output.last_hidden_state.float()
        mask = inputs.get("attention_mask", torch.ones(hidden.shape[:2], dtype=torch.int64))
        return pool(hidden, mask, pooling or Pooling())

    def agreement(self, expected: AnyArray, got: AnyArray) -> dict[str, float]:
        """Return ``min_cosine``: the least cosine of a row's two vectors; 0 where one has no length."""
        got = np.where(np.isfinite(got), got, 0.0)
        lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(got, axis=-1)
        cosines = (expected * got).sum(-1) / np.where(lengths > 0, lengths, 1.0)
        return {"min_cosine": float(cosines.min())}


def _head_weights(adapter: Adapter) -> Iterator[str]:
    """Yield the weights of classifier heads that ``adapter`` brings, the last first."""
    for name in reversed(list(adapter.modules_to_save)):
        if name.endswith(".weight") and name.rsplit(".", 2)[-2] in ("classifier", "score", "out_proj"):
            yield name
