"""Batches in which most rows have another with the same label, in an order that a resumed run reproduces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from rmlora.training.embedding_trainer import EmbeddingTrainer
from rmlora.training.features import ImageExamples

__all__ = ["LabelPairs", "LabelPairsTrainer"]


class LabelPairs(Sampler[int]):
    """All indices in random order, two by two with the same label as far as possible; it depends on seed and epoch only.

    With few images of many labels, rows drawn one by one would mostly meet no other of their label.

    Args:
        labels: number of the label of every row.
        seed: of the order.
    """

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        order = np.argsort(np.asarray(labels), kind="stable")
        ends = np.flatnonzero(np.diff(np.asarray(labels)[order])) + 1
        self._rows, self._count = np.split(order, ends), len(order)
        """Rows of each label."""
        self._seed, self._epoch = seed, 0

    def __len__(self) -> int:
        return self._count

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the order; called by the trainer."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._seed, self._epoch])
        pairs: list[list[int]] = []
        single: list[int] = []
        for of_label in self._rows:
            rows = rng.permutation(of_label).tolist()
            pairs += [rows[start : start + 2] for start in range(0, len(rows) - 1, 2)]
            single += rows[len(rows) - len(rows) % 2 :]
        mixed = [index for number in rng.permutation(len(pairs)) for index in pairs[number]]
        return iter([*mixed, *rng.permutation(np.array(single, int)).tolist()])


class LabelPairsTrainer(EmbeddingTrainer):
    """A trainer that samples with :class:`LabelPairs`."""

    train_dataset: ImageExamples

    def _get_train_sampler(self, train_dataset: Any = None) -> LabelPairs:
        return LabelPairs(self.train_dataset.labels, self.args.seed)
