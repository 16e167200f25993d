"""Training and evaluation with the transformers ``Trainer`` and its callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rmlora.config import RMLoRAConfig
from rmlora.progress_display import ProgressDisplay
from rmlora.quiet import quiet_transformers
from rmlora.training.settings import TrainSettings
from rmlora.training.task_training import Evaluation, TaskTraining

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from rmlora.training.features import Examples

__all__ = ["Fitted", "fit"]


@dataclass(frozen=True)
class Fitted:
    """What training returns beside the model."""

    evaluations: dict[str, Evaluation]
    """Split → what the kept checkpoint reaches, for validation and test data."""
    log_history: list[dict[str, Any]]
    """Entries of the trainer's state, of all parts of a resumed run."""
    best_step: int | None
    """Step of the kept checkpoint; None if none was evaluated."""
    steps: int
    """Optimizer steps of all parts."""


def fit(
    settings: TrainSettings,
    arguments: TrainingArguments,
    config: RMLoRAConfig,
    model: PeftModel,
    examples: Mapping[str, Examples],
    training: TaskTraining,
    *,
    processor: Any,
    checkpoint: Path | None,
    console: Console,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fitted:
    """Train ``model`` in place, restore its best checkpoint and evaluate it.

    Args:
        settings: the run.
        arguments: the same as transformers takes it.
        config: the method.
        model: with LoRA layers.
        examples: ``train``, ``validation`` and, if there is test data, ``test``.
        training: of the task.
        processor: of the base.
        checkpoint: where to continue; None starts from the beginning.
        console: where the main process shows progress.
        callbacks: for the main process.

    Raises:
        TrainingError: the run diverged, or RM-LoRA had no effect.
    """
    from rmlora.training.checkpoint_permissions import CheckpointPermissions
    from rmlora.training.early_stopping import EarlyStopping, restore_stopped
    from rmlora.training.progress import TrainingProgress

    trainer = _build_trainer(arguments, config, model, examples, training, processor)
    if settings.patience is not None:
        trainer.add_callback(EarlyStopping(settings.patience))
    progress = TrainingProgress(console)
    if trainer.is_world_process_zero():
        for callback in (_tensorboard(settings, checkpoint), progress, CheckpointPermissions(), *callbacks):
            trainer.add_callback(callback)
    try:
        with quiet_transformers():
            if not restore_stopped(trainer, checkpoint, settings.patience):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            with ProgressDisplay(console, "evaluating"):
                evaluations = {
                    name: training.evaluate(trainer, examples, name)
                    for name in ("validation", "test")
                    if name in examples
                }
    finally:
        progress.close()
    return Fitted(
        evaluations=evaluations,
        log_history=trainer.state.log_history,
        best_step=_step_of(trainer.state.best_model_checkpoint),
        steps=trainer.state.global_step,
    )


def _build_trainer(
    arguments: TrainingArguments,
    config: RMLoRAConfig,
    model: PeftModel,
    examples: Mapping[str, Examples],
    training: TaskTraining,
    processor: Any,
) -> Trainer:
    from transformers import PrinterCallback, ProgressCallback

    from rmlora.callback import RMLoRACallback
    from rmlora.training.objective import StopOnNaN

    shared = {
        "model": model,
        "args": arguments,
        "train_dataset": examples["train"],
        "eval_dataset": examples["validation"],
        "data_collator": examples["train"].collate,
    }
    trainer = training.trainer(shared, examples, processor)
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    # First in the list, so that the loggers after it see the penalty.
    trainer.callback_handler.callbacks.insert(0, RMLoRACallback(config, loss=training.batch_loss()))
    trainer.add_callback(StopOnNaN())
    return trainer


def _tensorboard(settings: TrainSettings, checkpoint: Path | None) -> Any:
    """Return the TensorBoard callback; it drops what a killed run logged after ``checkpoint``."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(
        SummaryWriter(str(settings.checkpoints / "tensorboard"), purge_step=_step_of(checkpoint))
    )


def _step_of(checkpoint: Path | str | None) -> int | None:
    """Return the number in ``checkpoint-<step>``."""
    return int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else None
