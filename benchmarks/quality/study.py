"""What the study compares: tasks, training-set sizes, seeds, learning rates, and the identity of one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ALL",
    "LEARNING_RATES",
    "REPORTED",
    "SEEDS",
    "SELECTION",
    "SIZES",
    "VALIDATION",
    "RunSpec",
    "Schedule",
    "StudyTask",
    "sizes_of",
    "study_task",
]


@dataclass(frozen=True)
class StudyTask:
    """A dataset, and how its examples are read."""

    dataset: str
    """Name in :data:`benchmarks.realdata.DATASETS`."""
    title: str
    modality: str = "text"
    """``text`` (MiniLM-L6) or ``image`` (DINOv2-small)."""
    length: int = 64
    """Tokens after which a text is cut, or pixels of an image's side."""
    graded: bool = False
    """True if the labels are numbers, here the similarity of a pair of sentences: the head has one output, the loss is the
    squared error and the score Spearman's rank correlation."""
    test: int = 1000
    """Examples of the test set, the same for every size of one seed."""
    largest: int | None = None
    """Training examples that are left, where they are fewer than :data:`ALL`."""


REPORTED: Mapping[str, StudyTask] = {
    "spam": StudyTask("sms", "SMS spam"),
    "trec": StudyTask("trec", "TREC-6 questions", length=32),
    "movies": StudyTask("movies", "movie reviews"),
    "tweets": StudyTask("tweets", "tweets"),
    "intents": StudyTask("intents", "home intents", length=32),
    "topics": StudyTask("bbc", "BBC topics", largest=724),
    "pairs": StudyTask("stsb", "STS-B pairs", graded=True),
    "digits": StudyTask("mnist", "MNIST digits", modality="image", length=56),
    "animals": StudyTask("animals", "animal silhouettes", modality="image", length=56),
}
"""Task → its data. None of these played a part in the choice of the defaults."""

SELECTION: Mapping[str, StudyTask] = {
    "products": StudyTask("products", "product reviews", length=32),
    "editorials": StudyTask("editorials", "editorials", length=32),
    "health": StudyTask("health", "health news", length=32),
    "diagnoses": StudyTask("diagnoses", "diagnoses", length=32),
}
"""Tasks on which the defaults of RM-LoRA were chosen."""


@dataclass(frozen=True)
class Schedule:
    """How long a training set of one size is trained, the same for all methods."""

    epochs: int
    batch: int


ALL = 4000
"""The largest training set: all examples that are not used for testing and validation, but at most this many."""

SIZES: Mapping[int, Schedule] = {200: Schedule(5, 16), 1000: Schedule(3, 32), ALL: Schedule(2, 32)}
"""Training examples → schedule."""

VALIDATION = 400
"""Examples on which learning rates are chosen; with intents, enough for all of them."""

SEEDS: Sequence[int] = (0, 1, 2, 3, 4)
"""A seed decides the split, the new weights of the head, the order of the data, dropout and masks."""

LEARNING_RATES: Sequence[float] = (5e-4, 1e-3, 2e-3, 4e-3)
"""The grid from which every method takes its rate, on the validation data of the first seed."""


@dataclass(frozen=True)
class RunSpec:
    """One run; equal specs give equal results on one machine."""

    task: str
    size: int
    method: str
    learning_rate: float
    seed: int
    label_noise: float = 0.0
    """Share of the training labels replaced by a wrong one."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSpec:
        """Return the spec in a record; keys that do not belong to a spec are results."""
        return cls(**{item.name: values[item.name] for item in dataclasses.fields(cls)})

    @property
    def title(self) -> str:
        """A short name for progress lines."""
        noise = f" noise {self.label_noise:.0%}" if self.label_noise else ""
        return f"{self.task}/{self.size} {self.method} lr {self.learning_rate:g} seed {self.seed}{noise}"


def sizes_of(task: str) -> tuple[int, ...]:
    """Return the training-set sizes of a task: those that its data fill, and the largest, which takes what there is."""
    largest = study_task(task).largest
    return tuple(size for size in SIZES if size == ALL or largest is None or size < largest)


def study_task(name: str) -> StudyTask:
    """Return a task of the study by its name."""
    return {**REPORTED, **SELECTION}[name]
