"""Writing a trained model as an adapter package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.checkpoint import Checkpoint
from rmlora.config import RMLoRAConfig
from rmlora.fingerprint import fingerprint_of, weight_digests
from rmlora.package import load_package, write_metadata
from rmlora.spectrum import adapter_spectrum
from rmlora.storage import atomic_directory
from rmlora.tasks import Task
from rmlora.training.result import TrainResult
from rmlora.training.settings import TrainSettings

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["write_trained_package"]


def write_trained_package(
    result: TrainResult,
    settings: TrainSettings,
    config: RMLoRAConfig,
    model: PeftModel,
    task: Task,
    labels: Sequence[str],
    *,
    base: Path,
    processor: Any,
    overwrite: bool,
) -> None:
    """Write ``model``'s adapter to ``result.output`` in PEFT's format, with ``rmlora.json`` about the run.

    Args:
        result: metrics and cost of the run.
        settings: the run.
        config: the method as trained, with the modules to save that were added.
        model: with the trained LoRA layers.
        task: of the adapter.
        labels: names in the order of the head's outputs.
        base: directory of the base; the package records digests of the weights that the adapter changes.
        processor: of the base; written for tasks whose packages carry one.
        overwrite: replace an existing package.

    Raises:
        OutputError: the package cannot be written.
    """
    with atomic_directory(result.output, overwrite=overwrite) as directory:
        model.peft_config["default"].base_model_name_or_path = settings.base
        model.save_pretrained(str(directory), save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # PEFT's model card is an empty form
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
                "labels": list(labels),
                "problem_type": "single_label_classification",
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
