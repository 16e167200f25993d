"""Batches of texts of similar length, in an order that a resumed run reproduces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from rmlora.training.best_checkpoint import BestCheckpointTrainer
from rmlora.training.features import TextExamples

__all__ = ["LengthGroupingTrainer", "LengthGroups"]


class LengthGroups(Sampler[int]):
    """Indices sorted by length within shuffled groups of batches; the order depends on seed and epoch only.

    transformers' own sampler draws from torch's global generator, whose state changes during an epoch, so a run resumed
    in the middle of one would continue in another order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the order; called by the trainer."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))


class LengthGroupingTrainer(BestCheckpointTrainer):
    """A trainer that samples with :class:`LengthGroups`."""

    train_dataset: TextExamples

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroups:
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroups(self.train_dataset.lengths, batch_size, self.args.seed)
