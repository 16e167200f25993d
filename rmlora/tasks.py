"""The tasks an adapter can be for: one object for each, made of what goes in and what comes out.

A new task is a new object in :data:`TASKS`; where it needs inputs or outputs of a new kind, those are new classes in
:mod:`rmlora.inputs` and :mod:`rmlora.outputs`. Nothing else in the toolkit asks which task it has.
"""

from __future__ import annotations

from dataclasses import dataclass

from rmlora.errors import ConfigError
from rmlora.inputs import ImageInputs, Inputs, TextInputs
from rmlora.outputs import ClassScores, Outputs, SentenceVector

__all__ = ["TASKS", "Task", "get_task", "task_of_peft"]


@dataclass(frozen=True)
class Task:
    """What a model is for."""

    name: str
    """Hugging Face's and Optimum's name of the task."""
    inputs: Inputs
    """What goes in: how rows are read, preprocessed and batched."""
    outputs: Outputs
    """What comes out: head, labels, and how two outputs are compared."""
    auto_class: str
    """Name of the transformers Auto class that builds the model."""
    peft_task_type: str | None
    """PEFT's task type, which also makes it keep the head; None where PEFT has none."""
    not_trained: str | None = None
    """Why ``rmlora-deploy train`` does not train this task, and what does; None where it does."""


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
    """Return the name of the task that is called ``task_type`` in PEFT; None where that is none of ours."""
    return next((task.name for task in TASKS.values() if task_type and task.peft_task_type == task_type), None)
