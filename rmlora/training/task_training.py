"""How the runs of one kind of task differ: data, examples, loss, figures, and what the package records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.scoring import ProblemType
from rmlora.tasks import Task
from rmlora.torch_models import TaskModel
from rmlora.training.readable_length import readable_length
from rmlora.training.settings import TrainSettings
from rmlora.training.split_evaluation import Evaluation
from rmlora.wording import counted

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.trainer_init import BatchLoss
    from rmlora.training.features import Examples

__all__ = ["Evaluation", "TaskTraining", "TrainingData"]


@dataclass(frozen=True)
class TrainingData:
    """The data of a run as it was read."""

    splits: Mapping[str, Any]
    """``train``, ``validation`` and, if there is test data, ``test`` → rows, in the form that the kind of task reads."""
    labels: tuple[str, ...] = ()
    """Label names in the order of the head's outputs; empty if there is none."""
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read and what was not used."""
    problem_type: ProblemType | None = None
    """What the head's scores are, for the model's configuration; None for other outputs."""


class TaskTraining(ABC):
    """The training of one kind of task. An instance belongs to one run.

    The methods are called in the order in which they stand here.

    Args:
        settings: of the run.
        task: of the adapter.
    """

    def __init__(self, settings: TrainSettings, task: Task) -> None:
        self.settings, self.task = settings, task
        """:meth:`load` completes settings whose default depends on the data."""

    @abstractmethod
    def load(self) -> TrainingData:
        """Read the data and split off validation data if none is given.

        Raises:
            InputError: data is missing, unreadable, empty or inconsistent; rows are named by their numbers.
        """

    @abstractmethod
    def check_data(self, data: TrainingData, processor: Any) -> TrainingData:
        """Return ``data`` as far as the processor can take it, before the model is loaded.

        Raises:
            InputError: a row does not fit; it is named by its number.
        """

    def load_options(self) -> dict[str, Any]:
        """Return what transformers is told when it loads the base, besides what all tasks tell it.

        Raises:
            DependencyError: a package that this takes is not installed.
        """
        return {}

    @abstractmethod
    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Raise :class:`CheckpointError` if the base cannot be trained for the task."""

    def fit_length(self, model: Any, processor: Any) -> list[str]:
        """Cut rows to what the base reads, which the package then records, and return a sentence if that is less than was set.

        Otherwise data of short texts would be learned well, and the finished model fail at the first long one.
        """
        if not self.task.inputs.varies_in_length:
            return []
        wanted = self.settings.token_limit
        length = readable_length(model, self.task.inputs, processor, wanted)
        self.settings = replace(self.settings, max_length=length)
        return (
            [f"The base reads at most {counted(length, 'token')}: --max-length {wanted} is lowered to that."]
            if length < wanted
            else []
        )

    @abstractmethod
    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return split → torch dataset with a collator."""

    @abstractmethod
    def trainer(self, arguments: Mapping[str, Any], examples: Mapping[str, Examples], processor: Any) -> Trainer:
        """Return the trainer with the task's loss and metrics; ``arguments`` are those that all tasks share."""

    def batch_loss(self) -> BatchLoss | None:
        """Return the loss of a batch if the model returns none itself; here it does."""
        return None

    @abstractmethod
    def evaluate(self, trainer: Trainer, examples: Mapping[str, Examples], split: str) -> Evaluation:
        """Return what the trained model reaches on a split.

        Raises:
            TrainingError: its loss is NaN.
        """

    @abstractmethod
    def metadata(self, model: PeftModel) -> dict[str, Any]:
        """Return the fields of ``rmlora.json`` that only this kind of task has."""

    def write_files(self, directory: Path, processor: Any) -> None:  # noqa: B027 - most tasks have none
        """Write what packages of such a task hold besides the adapter; here nothing."""
