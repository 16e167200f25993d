"""One callback that makes any transformers ``Trainer`` (also trl's) train any PEFT LoRA model as RM-LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmlora.config import RMLoRAConfig
from rmlora.errors import TrainingError
from rmlora.factors import Factors, find_factors
from rmlora.steps import MaskedStep, mask_gradients, regularize_gradients

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = ["RMLoRACallback"]


class RMLoRACallback(TrainerCallback):
    """Regularize and mask the LoRA gradients once per optimizer step.

    It acts after accumulation, reduction, unscaling and clipping and before the optimizer, so the loss that
    is logged and evaluated stays the task's own, and the penalty does not depend on gradient accumulation.
    ``orth_penalty`` (R, unweighted) is added to the training logs; loggers that come before this callback in
    the trainer's list see their copy without it.

        >>> trainer = Trainer(model=get_peft_model(model, config.to_peft()), callbacks=[RMLoRACallback(config)], ...)
    """

    def __init__(self, config: RMLoRAConfig) -> None:
        self.config = config
        self._factors: list[Factors] = []
        self._masked = MaskedStep()
        self._penalty: Tensor | None = None
        self._steps = 0
        self._first_step = 0

    @property
    def last_penalty(self) -> float | None:
        """R before the last optimizer step, or None before the first one or without a regularizer."""
        return None if self._penalty is None else float(self._penalty)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the factors; raise :class:`TrainingError` when there are none or they are sharded."""
        _refuse_sharding(args)
        self._factors = find_factors(_model(kwargs))
        self._steps, self._first_step = 0, state.global_step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the penalty's gradient, then zero the gradients of the masked directions."""
        _unscale(kwargs.get("optimizer"))
        self._penalty = regularize_gradients(self._factors, self.config)
        self._masked = mask_gradients(self._factors, self.config, state.global_step)
        self._steps += 1

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the masked directions under ``mask_mode="update"``."""
        self._masked.restore()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add ``orth_penalty`` to a training log, for the loggers that follow and for the log history."""
        if logs is None or "loss" not in logs or self.last_penalty is None:
            return
        logs["orth_penalty"] = self.last_penalty
        if state.log_history:
            state.log_history[-1]["orth_penalty"] = self.last_penalty

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise :class:`TrainingError` when optimizer steps were made without this callback acting on them."""
        if self._steps == 0 and state.global_step > self._first_step:
            raise TrainingError(
                f"{state.global_step - self._first_step} optimizer steps ran without RM-LoRA: this trainer never calls "
                "on_pre_optimizer_step, so the adapter is plain LoRA; use regularize_gradients and mask_gradients instead."
            )


def _model(kwargs: dict[str, Any]) -> Module:
    model: Module | None = kwargs.get("model")
    if model is None:
        raise TrainingError("The trainer gave the RM-LoRA callback no model: pass model= to the trainer.")
    return model


def _refuse_sharding(args: TrainingArguments) -> None:
    kind = "DeepSpeed" if getattr(args, "deepspeed", None) else "FSDP" if getattr(args, "fsdp", None) else None
    if kind:
        raise TrainingError(
            f"{kind} shards gradients, and RM-LoRA masks whole rank directions: train with plain data parallelism "
            "(torchrun or accelerate with DDP) instead."
        )


def _unscale(optimizer: Any) -> None:
    """Unscale fp16 gradients where clipping has not done it: the penalty's gradient is in true units."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return
    try:
        scaler.unscale_(optimizer.optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise
