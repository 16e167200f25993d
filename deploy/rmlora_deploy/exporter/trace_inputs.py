"""What a model takes: names, example tensors to trace with, and which axes may vary.

Example tensors come from Optimum's input generators, which know the shapes that models of every type need.
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
"""Sizes to trace with: neither 0 nor 1, which the exporter would fix in the graph."""


@dataclass(frozen=True)
class TraceInputs:
    """Example inputs by name, and for each the names of the axes that vary."""

    tensors: dict[str, Tensor]
    axes: dict[str, dict[int, str]]


def trace_inputs(
    task: Task, config: Any, processor: Any, *, batch: int = BATCH, sequence: int = SEQUENCE
) -> TraceInputs:
    """Return inputs for tracing a model of ``task``.

    Args:
        task: decides the inputs.
        config: the transformers configuration of the model.
        processor: its tokenizer or image processor.
        batch: rows.
        sequence: tokens.

    Raises:
        ConfigError: Optimum does not know this task for the model.
    """
    require("optimum", "export")
    from optimum.exporters.tasks import TasksManager

    name = TasksManager.map_from_synonym(task.name)
    if name not in TasksManager.get_all_tasks():
        raise ConfigError(f"Optimum has no export of the task '{task.name}': choose another --task.")
    tensors, axes = task.inputs.trace_tensors(name, config, processor, rows=batch, tokens=sequence)
    return TraceInputs(tensors, dict.fromkeys(tensors, axes))
