"""One training run: data and base in, a finished adapter package out."""

from __future__ import annotations

import dataclasses
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.config import RMLoRAConfig
from rmlora.errors import ConfigError, TrainingError, require
from rmlora.fingerprint import fingerprint_of, weight_digests
from rmlora.package import load_package, write_metadata
from rmlora.spectrum import adapter_spectrum
from rmlora.storage import atomic_directory, refuse_existing
from rmlora.tasks import Task, get_task
from rmlora.torch_models import TaskModel, load_task_model, quiet_transformers
from rmlora.training.data import Columns, Splits, load_splits
from rmlora.training.resume import claim_run, last_whole_checkpoint
from rmlora.training.settings import TrainSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainingArguments

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run produced."""

    output: Path
    metrics: dict[str, Any]
    """``validation`` and, where test data was given, ``test``: loss, accuracy, macro F1; and the counts of examples."""
    trainable_parameters: int
    steps: int
    seconds: float
    main_process: bool
    """False on the other processes of a distributed run, which have written nothing."""


def train(
    settings: TrainSettings, *, console: Console | None = None, resume: bool = True, overwrite: bool = False
) -> TrainResult:
    """Train an adapter and write its package to ``settings.output``.

    A run that was killed continues from its last whole checkpoint when it is started again with the same
    settings, and ends with the same tensors as an uninterrupted one. Works under torchrun and accelerate.

    Args:
        settings: the run.
        console: where progress is shown (by the main process); None shows nothing.
        resume: continue an interrupted run; False starts over.
        overwrite: replace an existing package.

    Raises:
        ConfigError: settings that do not fit the model or an interrupted run.
        InputError: unusable data or base.
        TrainingError: the run diverged, or RM-LoRA had no effect.
        OutputError: the package cannot be written.
    """
    for module in ("torch", "transformers", "peft", "accelerate", "datasets"):
        require(module, "train")
    from transformers import set_seed

    console = console or Console(quiet=True)
    refuse_existing(settings.output, overwrite=overwrite)
    started = time.monotonic()
    task = get_task(settings.task)
    base = resolve_base(settings.base, revision=settings.revision)
    splits = load_splits(
        task,
        settings.train,
        settings.validation,
        settings.test,
        columns=Columns(getattr(settings, task.inputs.column_option), settings.label_column),
        validation_fraction=settings.validation_fraction,
        seed=settings.seed,
    )
    set_seed(settings.seed)
    options = {"trust_remote_code": True} if settings.trust_remote_code else {}
    loaded = load_task_model(base, task, splits.labels, **options)
    model, config = _adapt(loaded, task, settings.rmlora)
    processor = task.inputs.load_processor(base)
    task.inputs.resize(processor, settings.image_size)
    arguments = _arguments(settings)  # joins the process group of torchrun or accelerate
    processes = arguments.distributed_state
    main_process: bool = processes.is_main_process
    checkpoint = None
    if main_process:
        checkpoint = claim_run(settings.checkpoints, settings.identity(), resume=resume)
    processes.wait_for_everyone()
    if not main_process:
        checkpoint = last_whole_checkpoint(settings.checkpoints)
    if checkpoint is not None and main_process:
        console.print(f"Continuing the interrupted run at {checkpoint.name.replace('-', ' ')}.")
    metrics, steps = _fit(settings, arguments, config, model, task, splits, processor, checkpoint, console)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    result = TrainResult(settings.output, metrics, trainable, steps, time.monotonic() - started, main_process)
    if main_process:
        _write_package(settings, config, model, task, splits, processor, base, result, overwrite=overwrite)
    processes.wait_for_everyone()
    return result


def _adapt(loaded: TaskModel, task: Task, config: RMLoRAConfig) -> tuple[PeftModel, RMLoRAConfig]:
    """Wrap the model with the adapter; whatever the base had no weights for is trained whole."""
    from peft import get_peft_model

    heads = {name for name in ("classifier", "score") if hasattr(loaded.model, name)}
    fresh = {name for name in loaded.new_modules if name.partition(".")[0] not in heads}
    modules_to_save = tuple(sorted({*config.modules_to_save, *heads, *fresh}))
    excluded = tuple(sorted({*config.exclude_modules, *fresh}))
    config = dataclasses.replace(config, modules_to_save=modules_to_save, exclude_modules=excluded)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT sets fan_in_fan_out for Conv1D itself, and says so
            return get_peft_model(loaded.model, config.to_peft(task_type=task.peft_task_type)), config
    except ValueError as error:
        if "arget" not in str(error):
            raise
        kinds = sorted(
            {
                n.rpartition(".")[2]
                for n, m in loaded.model.named_modules()
                if hasattr(m, "weight") and m.weight.dim() > 1
            }
        )
        raise ConfigError(
            f"target_modules {config.target_modules} fits no module of this model: choose --target-modules among {', '.join(kinds)}."
        ) from None


def _fit(
    settings: TrainSettings,
    arguments: TrainingArguments,
    config: RMLoRAConfig,
    model: PeftModel,
    task: Task,
    splits: Splits,
    processor: Any,
    checkpoint: Path | None,
    console: Console,
) -> tuple[dict[str, Any], int]:
    """Train, restore the best checkpoint and evaluate it; return metrics and optimizer steps."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers import PrinterCallback, ProgressCallback, Trainer
    from transformers.integrations.integration_utils import TensorBoardCallback

    from rmlora.callback import RMLoRACallback
    from rmlora.training.objective import StopOnNaN, classification_metrics, cross_entropy
    from rmlora.training.progress import RichProgress
    from rmlora.training.sampler import LengthGroupingTrainer

    examples = {
        name: task.inputs.examples(*data, processor, settings.max_length)
        for name, data in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
        if data is not None
    }
    trainer = (LengthGroupingTrainer if settings.group_by_length else Trainer)(
        model=model,
        args=arguments,
        train_dataset=examples["train"],
        eval_dataset=examples["validation"],
        data_collator=examples["train"].collate,
        compute_metrics=classification_metrics,
        compute_loss_func=cross_entropy,
    )
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    # First in the list, so that the loggers after it see the penalty.
    trainer.callback_handler.callbacks.insert(0, RMLoRACallback(config))
    trainer.add_callback(StopOnNaN())
    progress = RichProgress(console)
    if trainer.is_world_process_zero():
        writer = SummaryWriter(str(settings.checkpoints / "tensorboard"), purge_step=_step_of(checkpoint))
        trainer.add_callback(TensorBoardCallback(writer))
        trainer.add_callback(progress)
    try:
        with quiet_transformers():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            steps = trainer.state.global_step
            trainer.remove_callback(TensorBoardCallback)  # its writer is closed; it would open another for what follows
            scores = {
                name: _plain(trainer.evaluate(examples[name], metric_key_prefix=name), name)
                for name in ("validation", "test")
                if name in examples
            }
    except ValueError as error:
        if (reason := task.inputs.explain(error)) is None:
            raise
        raise ConfigError(reason) from None
    finally:
        progress.close()
    counts = {name: len(data) for name, data in examples.items()}
    return {
        **{str(name): values for name, values in scores.items()},
        "examples": counts,
        "best_checkpoint_step": _step_of(trainer.state.best_model_checkpoint),
    }, steps


def _arguments(settings: TrainSettings) -> TrainingArguments:
    import torch
    from transformers import TrainingArguments

    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("precision fp16 needs a GPU, and torch sees none: use --precision fp32 or bf16.")
    cadence: dict[str, Any] = {"save_strategy": "epoch"}
    if settings.save_steps:
        cadence = {"save_strategy": "steps", "save_steps": settings.save_steps, "eval_steps": settings.save_steps}
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
        "greater_is_better": settings.best_metric != "loss",
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        "seed": settings.seed,
        "report_to": [],
        "use_cpu": not torch.accelerator.is_available(),  # else processes started without a GPU would not find each other
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        **cadence,
    }
    if int(version("transformers").partition(".")[0]) >= 5:
        options["warmup_steps"] = settings.warmup_ratio  # a fraction is read as a ratio
    else:
        options["warmup_ratio"] = settings.warmup_ratio
    return TrainingArguments(**options)


def _write_package(
    settings: TrainSettings,
    config: RMLoRAConfig,
    model: PeftModel,
    task: Task,
    splits: Splits,
    processor: Any,
    base: Path,
    result: TrainResult,
    *,
    overwrite: bool,
) -> None:
    with atomic_directory(settings.output, overwrite=overwrite) as directory:
        model.peft_config["default"].base_model_name_or_path = settings.base
        model.save_pretrained(str(directory), save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # PEFT's card is a form with nothing filled in
        if task.inputs.packs_processor:
            processor.save_pretrained(directory)
        adapter = load_package(directory)
        spectrum = adapter_spectrum(adapter)
        weights = weight_digests(Checkpoint(base), adapter.modules)
        write_metadata(
            directory,
            {
                "rmlora": config.to_dict(),
                "task": task.name,
                "labels": list(splits.labels),
                "architecture": type(model.get_base_model()).__name__,
                "base_model": settings.base,
                "base_fingerprint": fingerprint_of(weights),
                "base_weights": weights,
                "metrics": {
                    **result.metrics,
                    "effective_rank": spectrum.effective_rank,
                    "stable_rank": spectrum.stable_rank,
                    "trainable_parameters": result.trainable_parameters,
                },
                "training": {
                    "settings": settings.to_dict(),
                    "steps": result.steps,
                    "seconds": round(result.seconds, 1),
                    "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
                },
            },
        )


def _plain(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    names = ("loss", "accuracy", "macro_f1")
    scores = {name: float(metrics[f"{prefix}_{name}"]) for name in names}
    if any(value != value for value in scores.values()):
        raise TrainingError(f"The trained model's {prefix} loss is NaN: lower --learning-rate.")
    return scores


def _step_of(checkpoint: Path | str | None) -> int | None:
    return int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else None
