"""A callback with which any transformers ``Trainer`` (also trl's) trains any PEFT LoRA model as RM-LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmlora.config import RMLoRAConfig
from rmlora.errors import TrainingError
from rmlora.factors import Factors, find_factors
from rmlora.steps import MaskedStep, finish_step, mask_gradients, regularize_gradients
from rmlora.trainer_init import BatchLoss, align_factors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = ["RMLoRACallback"]


class RMLoRACallback(TrainerCallback):
    """Mask the LoRA gradients in every optimizer step, and keep the directions apart.

        >>> config = RMLoRAConfig(rank=8, active_rank=4)
        >>> model = get_peft_model(model, config.to_peft(task_type="SEQ_CLS"))          # doctest: +SKIP
        >>> trainer = Trainer(model=model, callbacks=[RMLoRACallback(config)], ...)     # doctest: +SKIP
        >>> trainer.train()                                                             # doctest: +SKIP

    The callback runs after accumulation, reduction, unscaling and clipping, just before the optimizer. So the logged and
    evaluated loss is the task's loss alone, and the penalty does not depend on gradient accumulation. Only the gradients
    of LoRA factors are changed; a head in ``modules_to_save`` trains as usual.

    ``orth_penalty`` (R, not weighted) is added to the training logs. Loggers that precede this callback in the trainer's
    list do not see it.

    Use one callback per run. Data parallelism (torchrun, accelerate with DDP) works; FSDP and DeepSpeed do not.

    Args:
        config: the method; the one whose ``to_peft()`` made the model's LoRA layers.
        loss: of the model on a batch, with which fresh factors are aligned; None takes the loss that the model returns itself.

    Raises:
        TrainingError: at the start, the model has no trainable LoRA factors or they are sharded; at the end, the trainer
            never called the callback before an optimizer step.
    """

    def __init__(self, config: RMLoRAConfig, *, loss: BatchLoss | None = None) -> None:
        self.config, self._loss = config, loss
        self._factors: list[Factors] = []
        self._masked = MaskedStep()
        self._penalty: Tensor | None = None
        self._steps = self._finished = 0
        self._first_step = 0

    @property
    def last_penalty(self) -> float | None:
        """R before the last optimizer step; None before the first step or if ``orth_weight`` is 0."""
        return None if self._penalty is None else float(self._penalty)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the factors, and align fresh ones with the gradient unless a checkpoint is continued.

        Raises:
            TrainingError: there are none, they are sharded by anything but FSDP2, or the model does not return a loss.
        """
        _refuse_deepspeed(args)
        self._factors = find_factors(_model(kwargs))
        self._steps, self._finished, self._first_step = 0, 0, state.global_step
        if self.config.init == "gradient" and state.global_step == 0:
            align_factors(
                _model(kwargs),
                self._factors,
                kwargs.get("train_dataloader"),
                args,
                seed=self.config.seed,
                loss=self._loss,
            )

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
        """Lengthen the step, decorrelate the directions, and restore masked ones under ``mask_mode="update"``."""
        rate = _learning_rate(kwargs.get("optimizer"), self._factors) if self.config.decorrelation else 0.0
        finish_step(self._factors, self.config, self._masked, rate)
        self._finished += 1

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add ``orth_penalty`` to training logs: to the log history and for the loggers that follow."""
        if logs is None or "loss" not in logs or self.last_penalty is None:
            return
        logs["orth_penalty"] = self.last_penalty
        if state.log_history:
            state.log_history[-1]["orth_penalty"] = self.last_penalty

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise :class:`TrainingError` if the trainer took optimizer steps without calling this callback before and after them."""
        if state.global_step > self._first_step and not (self._steps and self._finished):
            missing = "on_optimizer_step" if self._steps else "on_pre_optimizer_step"
            raise TrainingError(
                f"{state.global_step - self._first_step} optimizer steps ran without RM-LoRA: this trainer never calls "
                f"{missing}, so the adapter is not what its settings say; call the functions of rmlora.steps instead."
            )


def _model(kwargs: dict[str, Any]) -> Module:
    model: Module | None = kwargs.get("model")
    if model is None:
        raise TrainingError("The trainer gave the RM-LoRA callback no model: pass model= to the trainer.")
    return model


def _learning_rate(optimizer: Any, factors: Sequence[Factors]) -> float:
    """Return the rate of the parameter group that holds the first factor.

    Raises:
        TrainingError: the trainer gave no optimizer, or one that does not hold the factors.
    """
    for group in getattr(optimizer, "param_groups", ()):
        if any(parameter is factors[0].A for parameter in group["params"]):
            return float(group["lr"])
    raise TrainingError("The trainer's optimizer does not hold the LoRA factors: give it all trainable parameters.")


def _refuse_deepspeed(args: TrainingArguments) -> None:
    if getattr(args, "deepspeed", None) or getattr(args, "distributed_type", None) == "DEEPSPEED":
        raise TrainingError(
            "DeepSpeed takes its optimizer step inside the backward pass, whatever its ZeRO stage, so RM-LoRA cannot change the "
            "gradients before it: shard with FSDP2 (fsdp_config version 2), or use DDP (torchrun, accelerate)."
        )


def _unscale(optimizer: Any) -> None:
    """Unscale fp16 gradients unless clipping has done so, because the penalty's gradient is not scaled."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return
    try:
        scaler.unscale_(optimizer.optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise
