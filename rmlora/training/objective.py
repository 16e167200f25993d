"""Loss, metrics and a NaN check for the transformers ``Trainer``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmlora.errors import TrainingError
from rmlora.training.class_report import report_classes

__all__ = ["StopOnNaN", "classification_metrics", "cross_entropy"]


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


def cross_entropy(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Return the mean loss over all examples of an optimizer step, under accumulation and data parallelism too.

    The classifiers of transformers divide by the examples of a single forward pass, which multiplies the gradient by N
    under accumulation N.
    """
    total = torch.nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else labels.numel())


def classification_metrics(prediction: Any) -> dict[str, float]:
    """Return the accuracy and macro-averaged F1 of an evaluation."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    report = report_classes(logits, prediction.label_ids, [str(index) for index in range(logits.shape[-1])])
    return {"accuracy": report.accuracy, "macro_f1": report.macro_f1}
