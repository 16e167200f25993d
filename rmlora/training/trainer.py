"""The transformers ``Trainer`` with the two things it gets wrong for an exact and resumable classifier run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from rmlora.errors import TrainingError

__all__ = ["ClassificationTrainer", "StopOnNaN", "classification_metrics", "cross_entropy"]


class ClassificationTrainer(Trainer):
    """Draws the order of an epoch from (seed, epoch) alone, so that a resumed run sees the same batches.

    transformers' length-grouped sampler takes it from the global generator, whose state at the start of the
    epoch is not the one a checkpoint restores.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return _EpochSampler(
            len(dataset),  # type: ignore[arg-type]
            getattr(dataset, "lengths", None),
            self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            self.args.seed,
        )


class _EpochSampler(Sampler[int]):
    """A permutation that depends on (seed, epoch), with rows of similar length side by side."""

    def __init__(self, size: int, lengths: list[int] | None, batch_size: int, seed: int) -> None:
        self._size, self._lengths, self._batch_size, self._seed = size, lengths, batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; accelerate's loader calls this at the start of every epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        if self._lengths is None:
            yield from torch.randperm(self._size, generator=generator).tolist()
        else:
            yield from get_length_grouped_indices(self._lengths, self._batch_size, generator=generator)


class StopOnNaN(TrainerCallback):
    """Ends a diverged run at its first NaN, which the trainer's own filter would hide in an average."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raise :class:`TrainingError` when a trainable parameter has turned NaN or infinite."""
        parameters = [(name, p) for name, p in kwargs["model"].named_parameters() if p.requires_grad]
        sums = torch.stack([parameter.detach().float().sum() for _, parameter in parameters])
        if not torch.isfinite(sums).all():
            name = next(
                name for (name, _), value in zip(parameters, sums.tolist(), strict=True) if not np.isfinite(value)
            )
            raise TrainingError(
                f"Training diverged: '{name}' holds NaN or infinity after step {state.global_step}; lower "
                "--learning-rate or --orth-weight, or keep --max-grad-norm above 0."
            )


def cross_entropy(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean loss over all examples of an optimizer step, however it is accumulated or distributed.

    The classifiers of transformers divide by the examples of one forward pass only, which under accumulation
    N multiplies the gradient by N.
    """
    total = torch.nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else labels.numel())


def classification_metrics(prediction: Any) -> dict[str, float]:
    """Return accuracy and macro-averaged F1 of an evaluation."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    guessed, labels = np.argmax(logits, axis=-1), prediction.label_ids
    scores = []
    for label in np.unique(labels):
        hits = float(((guessed == label) & (labels == label)).sum())
        scores.append(2 * hits / float((guessed == label).sum() + (labels == label).sum()))
    return {"accuracy": float((guessed == labels).mean()), "macro_f1": float(np.mean(scores))}
