"""Adapters with random factors: the cost of running an adapter does not depend on what it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.package import write_metadata
from rmlora.tasks import get_task
from rmlora.torch_models import load_task_model
from rmlora_converters.graph.contract.lora_inputs import LoraInputs

__all__ = ["PROJECTIONS", "draw_arrays", "save_random_adapter"]

PROJECTIONS = {
    "text-classification": ("query", "key", "value", "dense"),
    "feature-extraction": ("query", "key", "value", "dense"),
    "text-generation": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "image-classification": ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "projection"),
}
"""Task → the projections of MiniLM (36), of SmolLM2-135M (210) and of DINOv2-small (73)."""


def save_random_adapter(
    base: Path, task: str, directory: Path, *, rank: int, labels: Sequence[str] = (), seed: int, size: float = 0.05
) -> Path:
    """Save a random adapter of all projections, with a head if there are labels; return ``directory``."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(PROJECTIONS[task]),
        exclude_modules=["pooler.dense", "bert.pooler.dense"] if "dense" in PROJECTIONS[task] else None,
        modules_to_save=["classifier"] if labels else None,
        task_type=get_task(task).peft_task_type,
    )
    adapted = get_peft_model(load_task_model(base, get_task(task), labels).model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, size)
    adapted.save_pretrained(str(directory))
    write_metadata(directory, {"task": task, "labels": list(labels)})
    return directory


def draw_arrays(
    lora_inputs: LoraInputs, rng: np.random.Generator, *, rank: int, labels: int, size: float = 0.05
) -> dict[str, npt.NDArray[Any]]:
    """Return the float32 arrays of a random adapter's LoRA inputs, without making a package first."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for module in lora_inputs.modules:
        arrays[module.lora_A] = rng.normal(0, size, (1, module.fan_in, rank)).astype(np.float32)
        arrays[module.lora_B] = rng.normal(0, size, (1, rank, module.fan_out)).astype(np.float32)
    for head in lora_inputs.heads:
        arrays[head.weight] = rng.normal(0, 0.5, (1, head.fan_in, labels)).astype(np.float32)
        arrays[head.bias] = rng.normal(0, 0.5, (1, labels)).astype(np.float32)
    return arrays
