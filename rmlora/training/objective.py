"""Loss, scores and a NaN check for the transformers ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmlora.errors import TrainingError

__all__ = ["StopOnNaN", "mean_over_step", "scores_of"]


class StopOnNaN(TrainerCallback):
    """Stop a diverged run at its first NaN; the trainer's own filter would hide it in an average."""

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


def mean_over_step(summed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return the trainer's loss: the mean over all targets of an optimizer step, under accumulation and data parallelism too.

    The classifiers of transformers divide by the targets of a single forward pass, which multiplies the gradient by N
    under accumulation N.

    Args:
        summed: loss of scores and targets, summed over all targets.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        total = summed(outputs.logits.float(), labels)
        return total / (num_items_in_batch if num_items_in_batch is not None else labels.numel())

    return loss


def scores_of(prediction: Any) -> np.ndarray:
    """Return the scores ``[rows, outputs]`` of a trainer's prediction, whose model may return others beside them."""
    found = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return np.asarray(found, np.float64)
