"""Adding LoRA layers to a freshly loaded model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING

from rmlora.config import RMLoRAConfig
from rmlora.errors import AdapterError, ConfigError
from rmlora.patterns import check_selection
from rmlora.tasks import Task
from rmlora.torch_models import TaskModel

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.nn import Module

__all__ = ["add_lora_layers"]


def add_lora_layers(loaded: TaskModel, task: Task, config: RMLoRAConfig) -> tuple[PeftModel, RMLoRAConfig]:
    """Wrap a model with PEFT's LoRA layers.

    Modules that the base has no weights for (the head, perhaps a pooler) join ``modules_to_save``: they are trained
    and saved in full. Modules on which no output depends get neither.

    Returns:
        the PEFT model, and the configuration with these modules added.

    Raises:
        ConfigError: ``target_modules`` matches no module, ``modules_to_save`` names one on which no output depends, or a pattern
            cannot be matched in bounded time.
    """
    from peft import get_peft_model
    from torch.nn import MultiheadAttention

    _refuse_unused(loaded.model, task, config.modules_to_save)
    heads = {name for name in ("classifier", "score", "qa_outputs") if hasattr(loaded.model, name)}
    unused = {
        name
        for name, module in loaded.model.named_modules()
        if hasattr(module, "weight") and not task.outputs.depends_on(name)
    }
    # PyTorch's attention reads the weight of this layer without calling it, so an update of it alone has no effect
    unused |= {
        f"{name}.out_proj" for name, module in loaded.model.named_modules() if isinstance(module, MultiheadAttention)
    }
    fresh = {name for name in loaded.new_modules if name.partition(".")[0] not in heads} - unused
    saved = {*config.modules_to_save, *heads, *fresh}
    config = dataclasses.replace(
        config,
        modules_to_save=tuple(sorted(saved)),
        # PEFT leaves the head out of all-linear for some tasks only
        exclude_modules=tuple(
            sorted({*config.exclude_modules, *heads, *fresh, *unused, *_saved_by_ending(loaded.model, saved)})
        ),
    )
    names = [name for name, _ in loaded.model.named_modules()]
    try:
        check_selection(dataclasses.asdict(config), names, source="the training settings")
    except AdapterError as error:
        raise ConfigError(str(error)) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns when it sets fan_in_fan_out for Conv1D itself
            return get_peft_model(loaded.model, config.to_peft(task_type=task.peft_task_type)), config
    except ValueError as error:
        if "arget" not in str(error):
            raise
        given = [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules
        targets = ", ".join(f"'{name}'" for name in given)
        raise ConfigError(
            f"target_modules {targets} matches no module of this model{' that its outputs depend on' if unused else ''}: choose "
            f"--target-modules (repeatable) from {', '.join(_adaptable(loaded.model))}."
        ) from None


def _refuse_unused(model: Module, task: Task, chosen: Collection[str]) -> None:
    """Raise :class:`ConfigError` if training would save a module in full that changes nothing."""
    for name in chosen:
        matched = [path for path, _ in model.named_modules() if f".{path}".endswith(f".{name}")]
        if matched and not any(task.outputs.depends_on(path) for path in matched):
            raise ConfigError(
                f"No output of {task.name} depends on '{name}', so it would be saved without having learned anything: leave it out of "
                "--modules-to-save."
            )


def _saved_by_ending(model: Module, saved: Collection[str]) -> set[str]:
    """Return the modules that PEFT saves in full because their name ends like one of ``saved``.

    ``pre_classifier`` ends with ``classifier``; PEFT fails if such a module is also given LoRA factors.
    """
    return {name for name, _ in model.named_modules() if name not in saved and name.endswith(tuple(saved))}


def _adaptable(model: Module) -> list[str]:
    """Return the last name part of every module with a weight matrix."""
    modules = [(name, getattr(module, "weight", None)) for name, module in model.named_modules()]
    return sorted({name.rpartition(".")[2] for name, weight in modules if weight is not None and weight.dim() > 1})
