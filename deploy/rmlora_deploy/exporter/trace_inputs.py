"""Example inputs to trace a model with, and which of their axes may vary.

The tensors come from Optimum's input generators, which know the shapes that each type of model needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rmlora.errors import ConfigError, require
from rmlora.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TraceInputs", "trace_inputs"]

BATCH, SEQUENCE = 3, 16
"""Sizes to trace with; the exporter would treat an axis of size 0 or 1 as fixed."""


@dataclass(frozen=True)
class TraceInputs:
    """Example inputs by name, and for each input axis → name of the axes that vary."""

    tensors: dict[str, Tensor]
    axes: dict[str, dict[int, str]]


def trace_inputs(
    task: Task, config: Any, processor: Any, *, batch: int = BATCH, sequence: int = SEQUENCE
) -> TraceInputs:
    """Return inputs for tracing a model of ``task``, the same ones each time.

    Args:
        task: of the model.
        config: the transformers configuration of the model.
        processor: its tokenizer or image processor.
        batch: rows.
        sequence: tokens.

    Raises:
        ConfigError: Optimum does not know this task.
    """
    require("optimum", "export")
    import torch
    from optimum.exporters.tasks import TasksManager

    name = TasksManager.map_from_synonym(task.name)
    if name not in TasksManager.get_all_tasks():
        raise ConfigError(f"Optimum has no export of the task '{task.name}': choose another --task.")
    with torch.random.fork_rng(devices=()):  # Optimum's values are random
        torch.manual_seed(0)
        tensors, axes = task.inputs.trace_tensors(name, config, processor, rows=batch, tokens=sequence)
    return TraceInputs(tensors, dict.fromkeys(tensors, axes))
