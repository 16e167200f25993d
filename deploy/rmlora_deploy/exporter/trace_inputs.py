"""What a model takes: names, example tensors to trace with, and which axes may vary.

Example tensors come from Optimum's input generators, which know the shapes that models of every type need.
"""

from __future__ import annotations

import copy
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
        task: decides the modality.
        config: the transformers configuration of the model.
        processor: its tokenizer or image processor.
        batch: rows.
        sequence: tokens.

    Raises:
        ConfigError: Optimum does not know this task for the model.
    """
    require("optimum", "export")
    from optimum.exporters.tasks import TasksManager
    from optimum.utils import (
        DummyTextInputGenerator,
        DummyVisionInputGenerator,
        NormalizedTextConfig,
        NormalizedVisionConfig,
    )

    name = TasksManager.map_from_synonym(task.name)
    if name not in TasksManager.get_all_tasks():
        raise ConfigError(f"Optimum has no export of the task '{task.name}': choose another --task.")
    if task.modality == "image":
        sized = copy.deepcopy(config)
        sized.image_size = _image_size(processor)  # Optimum would take the base's, which the adapter may not share
        generator = DummyVisionInputGenerator(name, NormalizedVisionConfig(sized), batch_size=batch, num_channels=3)
        names = ["pixel_values"]
        axes = {0: "batch"}
    else:
        generator = DummyTextInputGenerator(
            name, NormalizedTextConfig(config), batch_size=batch, sequence_length=sequence
        )
        names = [item for item in processor.model_input_names if item in generator.SUPPORTED_INPUT_NAMES]
        axes = {0: "batch", 1: "sequence"}
    tensors = {item: generator.generate(item, framework="pt") for item in names}
    if "attention_mask" in tensors:
        tensors["attention_mask"] = tensors["attention_mask"].new_ones(tensors["attention_mask"].shape)
    return TraceInputs(tensors, dict.fromkeys(names, axes))


def _image_size(processor: Any) -> tuple[int, int]:
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    size = size or processor.size
    edge = size.get("shortest_edge") if hasattr(size, "get") else None
    height = (size.get("height") if hasattr(size, "get") else None) or edge
    width = (size.get("width") if hasattr(size, "get") else None) or edge
    if not height or not width:
        raise ConfigError(f"The image processor names no fixed size ({dict(size)}): train with --image-size.")
    return int(height), int(width)
