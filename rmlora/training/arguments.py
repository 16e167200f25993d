"""From our settings to transformers' ``TrainingArguments``."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rmlora.errors import ConfigError
from rmlora.training.result import LOWER_IS_BETTER
from rmlora.training.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["check_precision", "training_arguments"]


def check_precision(settings: TrainSettings) -> None:
    """Raise :class:`ConfigError` if this machine cannot train in the chosen precision."""
    import torch

    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("precision fp16 needs a GPU, and torch sees none: use --precision fp32 or bf16.")


def training_arguments(settings: TrainSettings) -> TrainingArguments:
    """Return the trainer's arguments; building them joins the process group of torchrun or accelerate."""
    import torch
    from transformers import TrainingArguments

    cadence: dict[str, Any] = {"save_strategy": "epoch"}
    if settings.eval_steps:  # a checkpoint of every evaluation, so that the best of them is there
        cadence = {"save_strategy": "steps", "save_steps": settings.eval_steps, "eval_steps": settings.eval_steps}
    options: dict[str, Any] = {
        "output_dir": str(settings.checkpoints),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": 2 * settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "lr_scheduler_type": "linear",
        "eval_strategy": cadence["save_strategy"],
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": settings.best_metric,
        "greater_is_better": settings.best_metric not in LOWER_IS_BETTER,
        "logging_steps": 10,
        "logging_first_step": True,  # a run of fewer steps has a curve too
        "logging_nan_inf_filter": False,
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        "seed": settings.seed,
        "report_to": [],
        "use_cpu": not torch.accelerator.is_available(),  # else processes without a GPU would not find each other
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        **cadence,
    }
    if settings.gradient_checkpointing:
        fields = {item.name for item in dataclasses.fields(TrainingArguments)}
        name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
        # the reentrant kind passes no gradient into a model whose embeddings are frozen
        options |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    if int(version("transformers").partition(".")[0]) >= 5:
        options["warmup_steps"] = settings.warmup_ratio  # transformers 5 reads a fraction as a ratio
    else:
        options["warmup_ratio"] = settings.warmup_ratio
    return TrainingArguments(**options)
