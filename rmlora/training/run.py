"""One training run: data and base in, a finished adapter package out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from rmlora.base import resolve_base
from rmlora.errors import ConfigError, require
from rmlora.storage import refuse_existing
from rmlora.tasks import Task, get_task
from rmlora.torch_models import load_task_model
from rmlora.training.arguments import training_arguments
from rmlora.training.data import Columns, Splits, load_splits
from rmlora.training.fit import fit
from rmlora.training.lora_layers import add_lora_layers
from rmlora.training.result import TrainResult
from rmlora.training.resume import claim_run, last_complete_checkpoint
from rmlora.training.settings import TrainSettings
from rmlora.training.trained_package import write_trained_package

__all__ = ["TrainResult", "train"]


def train(
    settings: TrainSettings, *, console: Console | None = None, resume: bool = True, overwrite: bool = False
) -> TrainResult:
    """Train an adapter and write its package to ``settings.output``.

    A killed run continues from its last complete checkpoint when it is started again with the same settings, and ends
    with the same tensors as an uninterrupted one. Works under torchrun and accelerate.

    Args:
        settings: the run.
        console: where the main process shows progress; None shows nothing.
        resume: continue an interrupted run; False starts over.
        overwrite: replace an existing package.

    Raises:
        ConfigError: settings that do not fit the model or the interrupted run.
        InputError: unusable data or base.
        TrainingError: the run diverged, or RM-LoRA had no effect.
        OutputError: the package cannot be written.
        DependencyError: a package of the extra ``train`` is not installed.
    """
    for module in ("torch", "transformers", "peft", "accelerate", "datasets"):
        require(module, "train")
    from transformers import set_seed

    console = console or Console(quiet=True)
    refuse_existing(settings.output, overwrite=overwrite)
    started = time.monotonic()
    task = get_task(settings.task)
    base = resolve_base(settings.base, revision=settings.revision)
    splits = _load_data(settings, task)

    set_seed(settings.seed)
    loaded = load_task_model(
        base,
        task,
        splits.labels,
        problem_type="single_label_classification",
        trust_remote_code=settings.trust_remote_code,
    )
    model, config = add_lora_layers(loaded, task, settings.rmlora)
    processor = task.inputs.load_processor(base, trust_remote_code=settings.trust_remote_code)
    task.inputs.resize(processor, settings.image_size)

    arguments = training_arguments(settings)
    processes = arguments.distributed_state
    main_process: bool = processes.is_main_process
    checkpoint = _find_checkpoint(settings, processes, resume=resume)
    if checkpoint is not None and main_process:
        console.print(f"Continuing the interrupted run at {checkpoint.name.replace('-', ' ')}.")

    examples = {
        name: task.inputs.examples(*rows, processor, settings.max_length) for name, rows in splits.by_name().items()
    }
    try:
        metrics, steps = fit(settings, arguments, config, model, examples, checkpoint=checkpoint, console=console)
    except ValueError as error:
        if (reason := task.inputs.explain(error)) is None:
            raise
        raise ConfigError(reason) from None

    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    result = TrainResult(settings.output, metrics, trainable, steps, time.monotonic() - started, main_process)
    if main_process:
        write_trained_package(
            result, settings, config, model, task, splits.labels, base=base, processor=processor, overwrite=overwrite
        )
    processes.wait_for_everyone()
    return result


def _load_data(settings: TrainSettings, task: Task) -> Splits:
    return load_splits(
        task,
        settings.train,
        settings.validation,
        settings.test,
        columns=Columns(getattr(settings, task.inputs.column_option), settings.label_column),
        validation_fraction=settings.validation_fraction,
        seed=settings.seed,
    )


def _find_checkpoint(settings: TrainSettings, processes: Any, *, resume: bool) -> Path | None:
    """Return the checkpoint to continue from; the main process prepares the run's directory before the others look."""
    checkpoint = (
        claim_run(settings.checkpoints, settings.identity(), resume=resume) if processes.is_main_process else None
    )
    processes.wait_for_everyone()
    return checkpoint if processes.is_main_process else last_complete_checkpoint(settings.checkpoints)
