"""Training and evaluation with the transformers ``Trainer`` and its callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rmlora.config import RMLoRAConfig
from rmlora.errors import TrainingError
from rmlora.torch_models import quiet_transformers
from rmlora.training.settings import TrainSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer, TrainingArguments

    from rmlora.training.features import Examples

__all__ = ["fit"]


def fit(
    settings: TrainSettings,
    arguments: TrainingArguments,
    config: RMLoRAConfig,
    model: PeftModel,
    examples: Mapping[str, Examples],
    *,
    checkpoint: Path | None,
    console: Console,
) -> tuple[dict[str, Any], int]:
    """Train ``model`` in place, restore its best checkpoint and evaluate it.

    Args:
        settings: the run.
        arguments: the same as transformers takes it.
        config: the method.
        model: with LoRA layers.
        examples: ``train``, ``validation`` and, if there is test data, ``test``.
        checkpoint: where to continue; None starts from the beginning.
        console: where the main process shows progress.

    Returns:
        the metrics of :class:`rmlora.training.result.TrainResult`, and the optimizer steps.

    Raises:
        TrainingError: the run diverged, or RM-LoRA had no effect.
    """
    from transformers.integrations.integration_utils import TensorBoardCallback

    from rmlora.training.checkpoint_permissions import CheckpointPermissions
    from rmlora.training.progress import RichProgress

    trainer = _build_trainer(settings, arguments, config, model, examples)
    progress = RichProgress(console)
    if trainer.is_world_process_zero():
        trainer.add_callback(_tensorboard(settings, checkpoint))
        trainer.add_callback(progress)
        trainer.add_callback(CheckpointPermissions())
    try:
        with quiet_transformers():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            steps = trainer.state.global_step
            trainer.remove_callback(TensorBoardCallback)  # its writer is closed; evaluation would open a second one
            scores = {
                name: _scores(trainer.evaluate(examples[name], metric_key_prefix=name), name)
                for name in ("validation", "test")
                if name in examples
            }
    finally:
        progress.close()
    return {
        **scores,
        "examples": {name: len(rows) for name, rows in examples.items()},
        "best_checkpoint_step": _step_of(trainer.state.best_model_checkpoint),
    }, steps


def _build_trainer(
    settings: TrainSettings,
    arguments: TrainingArguments,
    config: RMLoRAConfig,
    model: PeftModel,
    examples: Mapping[str, Examples],
) -> Trainer:
    from transformers import PrinterCallback, ProgressCallback, Trainer

    from rmlora.callback import RMLoRACallback
    from rmlora.training.objective import StopOnNaN, classification_metrics, cross_entropy
    from rmlora.training.sampler import LengthGroupingTrainer

    trainer = (LengthGroupingTrainer if settings.group_by_length else Trainer)(
        model=model,
        args=arguments,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        data_collator=examples["train"].collate,
        compute_metrics=classification_metrics,
        compute_loss_func=cross_entropy,
    )
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    # First in the list, so that the loggers after it see the penalty.
    trainer.callback_handler.callbacks.insert(0, RMLoRACallback(config))
    trainer.add_callback(StopOnNaN())
    return trainer


def _tensorboard(settings: TrainSettings, checkpoint: Path | None) -> Any:
    """Return the TensorBoard callback; it drops what a killed run logged after ``checkpoint``."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(
        SummaryWriter(str(settings.checkpoints / "tensorboard"), purge_step=_step_of(checkpoint))
    )


def _scores(metrics: dict[str, float], split: str) -> dict[str, float]:
    scores = {name: float(metrics[f"{split}_{name}"]) for name in ("loss", "accuracy", "macro_f1")}
    if any(value != value for value in scores.values()):
        raise TrainingError(f"The trained model's {split} loss is NaN: lower --learning-rate.")
    return scores


def _step_of(checkpoint: Path | str | None) -> int | None:
    """Return the number in ``checkpoint-<step>``."""
    return int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else None
