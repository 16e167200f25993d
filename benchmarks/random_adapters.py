"""Adapters with random factors: what running one costs does not depend on what it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from rmlora.models import load_task_model
from rmlora.package import write_metadata
from rmlora.tasks import get_task

__all__ = ["PROJECTIONS", "save_random_adapter"]

PROJECTIONS = {
    "text-classification": ("query", "key", "value", "dense"),
    "image-classification": ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "projection"),
}
"""Task → the projections of MiniLM (36) and of DINOv2-small (73)."""


def save_random_adapter(
    base: Path, task: str, directory: Path, *, rank: int, labels: Sequence[str], seed: int, size: float = 0.05
) -> Path:
    """Save an adapter of all projections with a head of its own, every factor drawn from ``seed``; return ``directory``."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(PROJECTIONS[task]),
        exclude_modules=["pooler.dense", "bert.pooler.dense"],
        modules_to_save=["classifier"],
        task_type=get_task(task).peft_task_type,
    )
    adapted = get_peft_model(load_task_model(base, get_task(task), labels).model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, size)
    adapted.save_pretrained(directory)
    write_metadata(directory, {"task": task, "labels": list(labels)})
    return directory
