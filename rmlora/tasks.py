"""The supported tasks, one object each, made of a kind of inputs and a kind of outputs.

To add a task, add an object to :data:`TASKS`; if it needs a new kind of inputs or outputs, add a class to
:mod:`rmlora.inputs` or :mod:`rmlora.outputs`. Nothing else in the toolkit distinguishes tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmlora.errors import ConfigError
from rmlora.inputs import ImageInputs, Inputs, TextInputs
from rmlora.outputs import ClassScores, Outputs, SentenceVector

__all__ = ["TASKS", "Task", "get_task", "task_of_peft"]


@dataclass(frozen=True)
class Task:
    """What a model takes and returns, and which classes build it."""

    name: str
    """Name of the task as in Hugging Face's pipelines and Optimum."""
    inputs: Inputs
    """How rows are read, preprocessed and batched."""
    outputs: Outputs
    """Head, labels, and how two outputs are compared."""
    auto_class: str
    """Name of the transformers Auto class that builds the model."""
    peft_task_type: str | None
    """PEFT's task type, with which PEFT also saves the head; None if PEFT has none for this task."""
    not_trained: str | None = None
    """Error sentence if ``rmlora-deploy train`` does not train this task; None if it does."""


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "text-classification", TextInputs(), ClassScores(), "AutoModelForSequenceClassification", "SEQ_CLS"
        ),
        Task("image-classification", ImageInputs(), ClassScores(), "AutoModelForImageClassification", None),
        Task(
            "feature-extraction", TextInputs(), SentenceVector(), "AutoModel", "FEATURE_EXTRACTION",
            not_trained="rmlora-deploy train does not train embeddings: train with sentence-transformers and the "
            "RMLoRACallback, or with anything else that writes PEFT's format, and deploy the adapter from there.",
        ),
    )
}  # fmt: skip


def get_task(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        ConfigError: no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"Unknown task '{name}': choose one of {', '.join(TASKS)}.")
    return TASKS[name]


def task_of_peft(task_type: str | None) -> str | None:
    """Return the name of the task with PEFT's task type ``task_type``; None if there is none."""
    return next((task.name for task in TASKS.values() if task_type and task.peft_task_type == task_type), None)
