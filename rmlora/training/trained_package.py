"""Writing a trained model as an adapter package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.config import RMLoRAConfig
from rmlora.package import CARD_FILE, load_package, write_metadata
from rmlora.processors import save_processor
from rmlora.spectrum import adapter_spectrum
from rmlora.storage import atomic_directory, write_json
from rmlora.tasks import Task
from rmlora.training.adapter_card import adapter_card
from rmlora.training.base_license import base_license
from rmlora.training.json_numbers import json_numbers
from rmlora.training.result import TrainResult
from rmlora.training.settings import TrainSettings
from rmlora.training.source_name import source_name, without_paths
from rmlora.training.training_plot import plot_training

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["EVALUATION_FILE", "PLOT_FILE", "save_adapter_files", "write_trained_package"]

EVALUATION_FILE = "evaluation.json"
"""Metrics by label and confusion matrix, or generated answers; history and warnings of the run."""
PLOT_FILE = "training.png"
"""Plot of the run."""


def save_adapter_files(model: PeftModel, task: Task, directory: Path, *, base_name: str, processor: Any) -> None:
    """Write PEFT's files and, for tasks whose packages carry one, the processor.

    Args:
        model: with LoRA layers.
        task: of the adapter.
        directory: that exists.
        base_name: of the base as the user gave it; PEFT's configuration names it.
        processor: of the base.
    """
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(str(directory), save_embedding_layers=False)
    (directory / CARD_FILE).unlink(missing_ok=True)  # PEFT's is an empty form; write_trained_package writes a full one
    if task.inputs.packs_processor:
        save_processor(processor, directory, source=base_name)


def write_trained_package(
    result: TrainResult,
    settings: TrainSettings,
    config: RMLoRAConfig,
    model: PeftModel,
    task: Task,
    task_record: Mapping[str, Any],
    *,
    base_record: Mapping[str, Any],
    base: Path,
    log_history: Sequence[Mapping[str, Any]],
    processor: Any,
    overwrite: bool,
    write_files: Callable[[Path], None],
) -> None:
    """Write ``model``'s adapter to ``result.output`` in PEFT's format, with ``rmlora.json``, a model card and others about the run.

    Args:
        result: metrics and cost of the run.
        settings: the run.
        config: the method as trained, with the modules to save that were added.
        model: with the trained LoRA layers.
        task: of the adapter.
        task_record: fields of the metadata that only this kind of task has.
        base_record: fields of the metadata about the base, of :func:`rmlora.training.rehearsal.rehearse_package`.
        log_history: of the trainer, to plot.
        base: its directory, for the license.
        processor: of the base; written for tasks whose packages carry one.
        overwrite: replace an existing package.
        write_files: writes what packages of such a task hold besides.

    Raises:
        OutputError: the package cannot be written.
    """
    with atomic_directory(result.output, overwrite=overwrite) as directory:
        save_adapter_files(model, task, directory, base_name=settings.base, processor=processor)
        write_files(directory)
        spectrum = adapter_spectrum(load_package(directory))
        _write_evaluation(result, directory, log_history)
        metadata: dict[str, Any] = {
            "rmlora": config.to_dict(),
            "task": task.name,
            **task_record,
            "base_model": source_name(settings.base),
            **base_record,
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
                "parts": result.parts,
                "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
            },
        }
        recorded = {**metadata["training"], "settings": without_paths(metadata["training"]["settings"])}
        write_metadata(directory, json_numbers({**metadata, "training": recorded}))
        card = adapter_card(
            result.output.name,
            task,
            metadata,
            choice=result.choice,
            warnings=result.warnings,
            license=base_license(base),
        )
        (directory / CARD_FILE).write_text(card, encoding="utf-8")


def _write_evaluation(result: TrainResult, directory: Path, log_history: Sequence[Mapping[str, Any]]) -> None:
    kept = result.metrics["best_checkpoint_step"]
    content = {"kept": result.choice, "warnings": list(result.warnings), **result.details, "history": result.history}
    write_json(directory / EVALUATION_FILE, json_numbers(content))
    plot_training(
        log_history,
        directory / PLOT_FILE,
        kept_step=kept,
        title=f"Training of {result.output.name}: {result.choice.rstrip('.')}",
        notes=result.warnings,
    )
