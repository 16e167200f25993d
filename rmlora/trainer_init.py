"""Aligning new factors with the gradient before a transformers ``Trainer`` takes its first step (torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rmlora.errors import TrainingError
from rmlora.factors import Factors
from rmlora.initialization import align_with_gradient, fresh_factors
from rmlora.sharding import is_sharded

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import TrainingArguments

__all__ = ["EXAMPLES", "BatchLoss", "align_factors"]

BatchLoss: TypeAlias = "Callable[[Module, Mapping[str, Any]], Tensor]"
"""The loss of a model on a batch as its collator makes it."""

EXAMPLES = 64
"""Training examples whose gradient is used, in batches of the trainer's size."""

_NO_LOSS = (
    "The factors cannot be aligned with the gradient, because the model gives no loss for a training batch: let the batches "
    "have labels, or set init='peft' in RMLoRAConfig"
)


def align_factors(
    model: Module,
    factors: Sequence[Factors],
    dataloader: Any,
    args: TrainingArguments,
    *,
    seed: int,
    loss: BatchLoss | None = None,
) -> None:
    """Align the fresh factors with the gradient of some training examples.

    The examples are drawn by ``seed`` from the dataloader's dataset, past its sampler: the order of training does not
    change. All processes draw the same ones, and the first one's result is sent to the others.

    Args:
        model: with the factors.
        factors: of the model.
        dataloader: of the training.
        args: of the trainer.
        seed: what the choice of examples depends on.
        loss: of the model on a batch; None takes the loss that the model returns itself.

    Raises:
        TrainingError: there is no dataloader to draw from, or the model returns no loss.
    """
    if not fresh_factors(factors):
        return
    if dataloader is None:
        raise TrainingError(
            "The trainer gave the RM-LoRA callback no training data to align the factors with: use init='peft'."
        )
    inner: Any = getattr(model, "module", model)
    batches = _batches(dataloader, args.per_device_train_batch_size, seed)
    align_with_gradient(inner, factors, [_loss(inner, batch, args, loss) for batch in batches], seed=seed)
    _share(factors)


def _batches(dataloader: Any, size: int, seed: int) -> list[Any]:
    """Return a few collated batches."""
    dataset = dataloader.dataset
    if hasattr(dataset, "__len__"):
        chosen = np.random.default_rng(seed).permutation(len(dataset))[:EXAMPLES]
        examples = [dataset[int(index)] for index in chosen]
    else:
        examples = list(islice(iter(dataset), EXAMPLES))
    return [dataloader.collate_fn(examples[start : start + size]) for start in range(0, len(examples), size)]


def _loss(model: Module, batch: Any, args: TrainingArguments, given: BatchLoss | None) -> Callable[[], Tensor]:
    """Return a function that computes the loss on a batch: the ``given`` one, or the model's own."""
    import torch

    device = next(model.parameters()).device
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None

    def compute() -> Tensor:
        inputs = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
        try:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                if given is not None:
                    return given(model, inputs)
                outputs = model(**inputs)
        except (TypeError, ValueError) as error:  # a trainer that takes its batches apart itself
            raise TrainingError(f"{_NO_LOSS} ({error}).") from error
        loss: Tensor | None = outputs.get("loss") if hasattr(outputs, "get") else getattr(outputs, "loss", None)
        if loss is None:
            raise TrainingError(f"{_NO_LOSS}.")
        return loss

    return compute


def _share(factors: Sequence[Factors]) -> None:
    """Give every process the factors of the first one; of sharded ones there is only one copy."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for item in factors:
            if is_sharded(item.A):
                continue
            torch.distributed.broadcast(item.A.data, 0)
