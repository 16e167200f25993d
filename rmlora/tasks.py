"""The tasks an adapter can be for, in one table; a new task is a new row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rmlora.errors import ConfigError

__all__ = ["TASKS", "Task", "get_task", "task_of_peft"]


@dataclass(frozen=True)
class Task:
    """What differs between tasks: model class, PEFT's task type, and what the inputs are."""

    name: str
    """Hugging Face's and Optimum's name of the task."""
    modality: Literal["text", "image"]
    """What a row of data is; decides between tokenizer and image processor."""
    auto_class: str
    """Name of the transformers Auto class that builds the model."""
    peft_task_type: str | None
    """PEFT's task type, which also makes it keep the head; None where PEFT has none."""
    answer: Literal["scores", "vector"] = "scores"
    """What the model says of a row: a score for each label, or a vector that stands for its meaning."""


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("text-classification", "text", "AutoModelForSequenceClassification", "SEQ_CLS"),
        Task("image-classification", "image", "AutoModelForImageClassification", None),
        Task("feature-extraction", "text", "AutoModel", "FEATURE_EXTRACTION", "vector"),
    )
}


def get_task(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        ConfigError: no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"Unknown task '{name}': choose one of {', '.join(TASKS)}.")
    return TASKS[name]


def task_of_peft(task_type: str | None) -> str | None:
    """Return the name of the task that is called ``task_type`` in PEFT; None where that is none of ours."""
    return next((task.name for task in TASKS.values() if task_type and task.peft_task_type == task_type), None)
