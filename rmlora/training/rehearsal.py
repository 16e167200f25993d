"""Rehearsing the end of a run before its first step, so that what would fail then fails now."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, CheckpointError, ConfigError, TrainingError
from rmlora.fingerprint import fingerprint_of, weight_digests
from rmlora.package import load_package
from rmlora.stored_weights import recorded_weight_map, stored_weights
from rmlora.tasks import Task
from rmlora.training.trained_package import save_adapter_files
from rmlora.wording import counted

if TYPE_CHECKING:
    from peft import PeftModel

    from rmlora.training.features import Examples

__all__ = ["rehearse_forward", "rehearse_package"]


def rehearse_package(
    model: PeftModel, task: Task, *, base: Path, base_name: str, processor: Any, scratch: Path
) -> dict[str, Any]:
    """Write the adapter as it is before training, read it back, and find the base weight of every adapted module.

    Args:
        model: with LoRA layers.
        task: of the adapter.
        base: directory of the base.
        base_name: of the base as the user gave it.
        processor: of the base.
        scratch: directory to write to; deleted at the end.

    Returns:
        what the package records about the base: its class, the digests of the adapted weights, and which stored tensors
        the adapted parameters are made of.

    Raises:
        CheckpointError: a module's weight is not found in the base, so the adapter could not be deployed.
        TrainingError: the package would lack something that is trained.
        OutputError: nothing can be written at ``scratch``.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        save_adapter_files(model, task, scratch, base_name=base_name, processor=processor)
        adapter = load_package(scratch)
        _check_complete(model, {*adapter.modules, *adapter.modules_to_save})
        architecture = type(model.get_base_model()).__name__
        adapter = replace(adapter, metadata={"task": task.name, "architecture": architecture})
        checkpoint = Checkpoint(base)
        weights = weight_digests(checkpoint, adapter.modules, adapter)
        return {
            "architecture": architecture,
            "base_fingerprint": fingerprint_of(weights),
            "base_weights": weights,
            "weight_map": recorded_weight_map(stored_weights(checkpoint, adapter), adapter),
        }
    except AdapterError as error:
        raise CheckpointError(
            f"An adapter of this base could not be deployed, so it is not trained: {str(error).partition(': ')[0]}. "
            "Leave the module out with --exclude-modules, or choose other --target-modules."
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def rehearse_forward(model: PeftModel, task: Task, examples: Mapping[str, Examples]) -> None:
    """Compute the longest row of every split, without changing the model.

    Raises:
        ConfigError: the model cannot process it, or PEFT cannot call the model.
    """
    import torch

    was_training = model.training
    model.eval()
    try:
        for split, rows in examples.items():
            batch = dict(rows.collate([rows[rows.longest]]))
            batch.pop("labels")
            try:
                with torch.no_grad():
                    model(**batch)
            except (TypeError, ValueError, IndexError, RuntimeError) as error:
                if isinstance(error, TypeError) and "keyword argument" in str(error):
                    raise ConfigError(
                        f"{type(model.get_base_model()).__name__} does not take what PEFT's models for {task.name} pass on, so it "
                        "cannot be trained: choose another base."
                    ) from None
                raise ConfigError(_explain(error, task, split, batch)) from None
    finally:
        model.train(was_training)


def _check_complete(model: PeftModel, stored: set[str]) -> None:
    """Raise :class:`TrainingError` if a trained parameter is not among the ``stored`` modules and tensors."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            path = re.sub(r"\.modules_to_save\.default\.", ".", name.removeprefix("base_model.model."))
            path = re.sub(r"\.lora_(embedding_)?[AB]\.default(\.weight)?$", "", path)
            if path not in stored:
                raise TrainingError(
                    f"PEFT would not save '{path}', which is trained: leave it out of --target-modules and "
                    "--modules-to-save."
                )


def _explain(error: Exception, task: Task, split: str, batch: Mapping[str, Any]) -> str:
    known = task.inputs.explain(error) if isinstance(error, ValueError) else None
    if known is not None:
        return known
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if "input_ids" in batch:
        tokens = int(batch["input_ids"].shape[-1])
        return f"The base cannot process the longest text of the {split} data, {counted(tokens, 'token')} ({reason}): lower --max-length."
    return f"The base cannot process the first image of the {split} data ({reason}): check --image-size."
