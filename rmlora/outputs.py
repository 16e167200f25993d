"""Kinds of outputs: scores for labels or one vector per row (numpy); :mod:`rmlora.generated_text` has the third kind.

Every task has one (:mod:`rmlora.tasks`). It says what the head is, which labels and modules count, and how two outputs are
compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from rmlora.errors import AdapterError, CheckpointError
from rmlora.heads import first_head, head_outputs, other_head
from rmlora.pooling import Pooling, PoolingMode, pool
from rmlora.scoring import ProblemType, Scoring, problem_type_in, scoring_of

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.adapter import Adapter
    from rmlora.inputs import Arrays

__all__ = [
    "ClassScores",
    "Outputs",
    "PooledVector",
    "SentenceVector",
    "WithoutLabels",
    "problem_type_of",
]

AnyArray = npt.NDArray[Any]


class Outputs(ABC):
    """A kind of outputs. Instances have no state."""

    kind: ClassVar[Literal["scores", "vector", "text", "answer", "tokens", "spans"]]
    has_labels: ClassVar[bool]
    """True if outputs are scores for labels, so metrics can be measured on labeled data."""
    fixed_labels: ClassVar[tuple[str, ...] | None] = None
    """The labels that all models of this kind have; None if each has its own, or none."""
    graph_outputs: ClassVar[tuple[str, str] | None] = None
    """Names of two outputs ``[rows, tokens]`` that transformers' models have in place of one; None if they have one."""
    axes: ClassVar[int] = 2
    """Axes of a graph's output: 2 for ``[rows, n]``."""
    pools: ClassVar[bool]
    """True if the token vectors are pooled into one."""
    pooling_modes: ClassVar[tuple[PoolingMode, ...]] = ()
    """How they may be pooled; empty if they are not."""
    learns_from_pairs: ClassVar[bool] = False
    """True if a row of training data has several texts, each with an output of its own."""
    route: ClassVar[str]
    """HTTP path of the server that returns such outputs."""
    train_defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of a training run whose default depends on the kind of outputs."""
    train_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings of a training run that only this kind has."""
    best_metrics: ClassVar[tuple[str, ...]] = ()
    """Validation metrics that can choose the checkpoint to keep."""

    @abstractmethod
    def head_options(self, labels: Sequence[str], problem_type: ProblemType | None = None) -> dict[str, Any]:
        """Return the arguments of transformers' ``from_pretrained`` that concern the head."""

    @abstractmethod
    def labels_of(self, adapter: Adapter, config: Mapping[str, Any]) -> list[str]:
        """Return the label names of ``adapter`` in the order of its outputs; empty if outputs have no labels.

        Args:
            adapter: any adapter for such outputs.
            config: of its base (``config.json``), whose names are used where the adapter records none.

        Raises:
            AdapterError: outputs have labels, but neither adapter nor base says how many, or the adapter records another
                number of names than its head has outputs.
        """

    @abstractmethod
    def count(self, adapter: Adapter, config: Mapping[str, Any]) -> int | None:
        """Return how many outputs the head of ``adapter`` has, or that of its base; None if neither says it."""

    @abstractmethod
    def labels_in(self, config: Mapping[str, Any]) -> list[str]:
        """Return the label names in a base's ``config.json``.

        Raises:
            CheckpointError: its ``id2label`` is not a mapping from 0, 1, … to names.
        """

    @abstractmethod
    def scoring(self, problem: str | None, labels: Sequence[str], threshold: float | None = None) -> Scoring | None:
        """Return what the scores for ``labels`` mean; None if outputs are not scores.

        Args:
            problem: problem type, or the function to apply (:func:`rmlora.scoring.scoring_of`).
            labels: of the model.
            threshold: probability from which a label applies, where several may; None is one half.
        """

    @abstractmethod
    def depends_on(self, module: str, pooling: Pooling | None = None) -> bool:
        """Return True if outputs can depend on the module at this path.

        Args:
            module: path.
            pooling: how token vectors become one; None leaves out what only some ways of pooling need.
        """

    @abstractmethod
    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Raise :class:`AdapterError` if ``adapter`` was made for another kind of outputs."""

    @abstractmethod
    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Raise :class:`AdapterError` if a graph with branches cannot switch ``adapter`` at runtime."""

    @abstractmethod
    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return float32 ``[rows, labels]``, ``[rows, width]`` or ``[rows, tokens, vocabulary]`` from a PyTorch model's output.

        Args:
            output: of the transformers model.
            inputs: of the model.
            pooling: how token vectors become one; None if nothing is pooled.
        """

    def padding_zeroed(self, output: AnyArray, batch: Arrays) -> AnyArray:
        """Return the output of a batch with zeros for what stands for padding; here nothing does."""
        return output

    def without_padding(self, output: AnyArray, batch: Arrays) -> AnyArray:
        """Return what of a batch's output is compared, ``[n, …]``; here all of it."""
        return output

    def of_row(self, output: AnyArray, row: Arrays) -> AnyArray:
        """Return what a metric is measured on: here the whole output of a row.

        Args:
            output: of the row, ``[n]``, or ``[tokens, n]`` with its padding.
            row: its inputs, without the batch axis.
        """
        return output

    def of_parts(self, parts: Sequence[AnyArray]) -> Any:
        """Return what a metric is measured on, of an input's parts (:meth:`rmlora.inputs.Inputs.parts`): here there is one."""
        return parts[0]

    @abstractmethod
    def agreement(self, expected: AnyArray, got: AnyArray, scoring: Scoring | None = None) -> dict[str, float]:
        """Return how well two outputs agree, as a comparison's field name → value.

        Args:
            expected: ``[rows, n]``, finite.
            got: the same shape; values that are not finite count as wrong.
            scoring: what scores mean; None judges by their number.
        """


class ClassScores(Outputs):
    """One score per label (logits)."""

    kind: ClassVar[Literal["scores", "tokens", "spans"]] = "scores"
    has_labels = True
    pools = False
    route = "/classify"
    train_defaults: ClassVar[Mapping[str, Any]] = {"max_length": 128, "group_by_length": False}
    train_settings: ClassVar[frozenset[str]] = frozenset(
        {"label_column", "labels", "problem_type", "class_weights", "label_smoothing", "threshold"}
    )
    best_metrics: ClassVar[tuple[str, ...]] = (
        "accuracy", "macro_f1", "balanced_accuracy", "mcc",
        "micro_f1", "samples_f1", "subset_accuracy",
        "pearson", "spearman", "mse", "mae",
        "loss",
    )  # fmt: skip

    def head_options(self, labels: Sequence[str], problem_type: ProblemType | None = None) -> dict[str, Any]:
        """Return number, names and kind of the labels; a head of another size is initialized anew."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,
            "problem_type": problem_type,
        }

    def labels_of(self, adapter: Adapter, config: Mapping[str, Any]) -> list[str]:
        """Return the adapter's names, else the base's if its head has as many outputs, else ``LABEL_i``."""
        if adapter.labels:
            self._check_recorded(adapter, adapter.labels, config)
            return adapter.labels
        outputs, own = self.count(adapter, config), self.labels_in(config)
        if outputs is None:
            raise AdapterError(
                f"{adapter.source} stores neither label names nor a classifier head, and neither does its base: it is not a "
                "classification adapter."
            )
        return own if outputs == len(own) else _numbered(outputs)

    def _check_recorded(self, adapter: Adapter, labels: Sequence[str], config: Mapping[str, Any]) -> None:
        """Raise :class:`AdapterError` if the head that ``adapter`` has, or leaves to its base, has no output for each label."""
        head, own = head_outputs(adapter), len(self.labels_in(config))
        if head is None and not adapter.modules_to_save and own not in (0, len(labels)):
            raise AdapterError(
                f"{adapter.source} records {len(labels)} labels, but contains no head, and its base has {own} labels: train it "
                "again with the head among modules_to_save."
            )
        if head not in (None, len(labels)):
            raise AdapterError(
                f"{adapter.source} records {len(labels)} labels, but its head has {head} outputs: pass the right names with "
                "--labels."
            )

    def count(self, adapter: Adapter, config: Mapping[str, Any]) -> int | None:
        """Return the number of rows of the head's weight, else of the base's labels."""
        return head_outputs(adapter) or len(self.labels_in(config)) or None

    def labels_in(self, config: Mapping[str, Any]) -> list[str]:
        """Return the names in ``id2label``, by index; where there are none, those that transformers takes."""
        names = config.get("id2label") or {}
        if not names:
            classifies = any(str(name).endswith("Classification") for name in config.get("architectures") or ())
            return _numbered(int(config.get("num_labels") or (2 if classifies else 0)))
        try:
            numbered = {int(key): str(name) for key, name in names.items()}
        except (AttributeError, TypeError, ValueError):
            numbered = {-1: ""}
        if sorted(numbered) != list(range(len(names))):
            raise CheckpointError("The base's config.json has an id2label that does not map 0, 1, … to label names.")
        return [numbered[index] for index in range(len(names))]

    def scoring(self, problem: str | None, labels: Sequence[str], threshold: float | None = None) -> Scoring | None:
        """Return transformers' convention for the problem and the number of labels."""
        return scoring_of(problem, len(labels), threshold)

    def depends_on(self, module: str, pooling: Pooling | None = None) -> bool:
        """Return True: scores can depend on any module."""
        return True

    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Refuse an adapter with the head of another task; one without a head uses the base's."""
        if (found := other_head(adapter)) is not None:
            name, purpose = found
            raise AdapterError(
                f"{adapter.source} contains '{name}', a head for {purpose}: it cannot be used for {task}."
            )

    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Accept every adapter: heads are LoRA inputs too."""

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return the logits."""
        logits: Tensor = output.logits.float()
        return logits

    def agreement(self, expected: AnyArray, got: AnyArray, scoring: Scoring | None = None) -> dict[str, float]:
        """Return ``argmax_agreement``: the share of rows with the largest score at the same label; nothing for numbers."""
        if not (scoring or scoring_of(None, expected.shape[-1])).has_choice:
            return {}
        same = (expected.argmax(-1) == got.argmax(-1)) & np.isfinite(got).all(-1)
        return {"argmax_agreement": float(same.mean())}


class WithoutLabels(Outputs):
    """Outputs of a model that has no head of its own for a task, so no labels."""

    has_labels = False

    def head_options(self, labels: Sequence[str], problem_type: ProblemType | None = None) -> dict[str, Any]:
        """Return nothing: there is no head."""
        return {}

    def labels_of(self, adapter: Adapter, config: Mapping[str, Any]) -> list[str]:
        """Return no labels."""
        return []

    def count(self, adapter: Adapter, config: Mapping[str, Any]) -> int | None:
        """Return None: there are no labels."""
        return None

    def labels_in(self, config: Mapping[str, Any]) -> list[str]:
        """Return no labels."""
        return []

    def scoring(self, problem: str | None, labels: Sequence[str], threshold: float | None = None) -> Scoring | None:
        """Return None: the outputs are no scores for labels."""
        return None

    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Refuse an adapter with a classifier head."""
        if head := first_head(adapter):
            raise AdapterError(
                f"{adapter.source} contains '{head}', the head of a classification adapter: it cannot be used for {task}."
            )


class PooledVector(WithoutLabels):
    """One vector per row, pooled from what an encoder makes of its parts."""

    kind = "vector"
    pools = True
    route = "/v1/embeddings"

    def depends_on(self, module: str, pooling: Pooling | None = None) -> bool:
        """Return True, but for the model's pooler only where its vectors are the output, and not those of tokens."""
        return module.partition(".")[0] != "pooler" or (pooling is not None and pooling.mode == "pooler")

    def check_switchable(self, adapter: Adapter, name: str) -> None:
        """Refuse modules saved in full: only low-rank updates can be switched, as there is no head."""
        if adapter.modules_to_save:
            raise AdapterError(
                f"'{name}' contains '{next(iter(adapter.modules_to_save))}' in full, but a graph for embeddings switches only "
                "low-rank updates: export it with --mode merged."
            )

    def agreement(self, expected: AnyArray, got: AnyArray, scoring: Scoring | None = None) -> dict[str, float]:
        """Return ``min_cosine``: the smallest cosine between a row's two vectors; 0 if one is zero."""
        got = np.where(np.isfinite(got), got, 0.0)
        lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(got, axis=-1)
        cosines = (expected * got).sum(-1) / np.where(lengths > 0, lengths, 1.0)
        return {"min_cosine": float(cosines.min())}


class SentenceVector(PooledVector):
    """One vector per text, pooled from its token vectors."""

    pooling_modes = ("mean", "cls", "last")
    learns_from_pairs = True
    train_defaults: ClassVar[Mapping[str, Any]] = {"max_length": 128, "group_by_length": False}
    train_settings = frozenset({"label_column", "negative_column", "pooling", "normalize"})
    best_metrics = ("spearman", "pearson", "ndcg_at_10", "mrr_at_10", "accuracy_at_1", "accuracy", "loss")

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return the pooled vectors of the last hidden state."""
        import torch

        hidden = output.last_hidden_state.float()
        mask = inputs.get("attention_mask", torch.ones(hidden.shape[:2], dtype=torch.int64))
        return pool(hidden, mask, pooling or Pooling())


def _numbered(count: int) -> list[str]:
    return [f"LABEL_{index}" for index in range(count)]


def problem_type_of(adapter: Adapter, config: Mapping[str, Any]) -> ProblemType | None:
    """Return what kind of answer ``adapter`` was trained for: what it records itself, else what its base records.

    Raises:
        CheckpointError: what is recorded is unknown to transformers.
    """
    if "problem_type" in adapter.metadata:
        return problem_type_in(adapter.metadata)
    if (
        "training" in adapter.metadata and adapter.labels
    ):  # rmlora-deploy train uses cross-entropy whatever the base was made for
        return "single_label_classification"
    return problem_type_in(config)
