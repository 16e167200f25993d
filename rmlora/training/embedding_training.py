"""Training of vectors for texts: pairs, scored pairs and triplets, with the losses and evaluators of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import require
from rmlora.pooling import Pooling, check_padding, write_pooling
from rmlora.processors import save_processor
from rmlora.torch_models import TaskModel
from rmlora.training.embedding_columns import EmbeddingColumns
from rmlora.training.embedding_data import load_embedding_data
from rmlora.training.embedding_problem import EMBEDDING_PROBLEMS, EmbeddingProblem
from rmlora.training.task_training import TrainingData
from rmlora.training.vector_training import VectorTraining

if TYPE_CHECKING:
    from rmlora.training.features import Examples

__all__ = ["EmbeddingTraining"]


class EmbeddingTraining(VectorTraining):
    """Training for :class:`rmlora.outputs.SentenceVector`."""

    _problem: EmbeddingProblem

    def load(self) -> TrainingData:
        """Read rows of texts, and complete the settings by what they are."""
        require("sentence_transformers", "train")
        settings = self.settings
        splits = load_embedding_data(
            settings.sources,
            EmbeddingColumns(
                settings.text_column, settings.pair_column, settings.negative_column, settings.label_column
            ),
            settings.reading,
            validation_fraction=settings.validation_fraction,
            seed=settings.data_seed,
        )
        train = splits["train"]
        self._problem = EMBEDDING_PROBLEMS[train.kind]
        self.settings = self._completed()
        *names, last = [f"'{name}'" for name in train.columns.texts]
        scored = f" with the score in '{train.columns.score}'" if train.columns.score else ""
        notes = [f"The rows of {train.source} are {train.kind} of {', '.join(names)} and {last}{scored}."]
        notes += [note for split in splits.values() for note in split.notes]
        for name, split in splits.items():
            notes += self._problem.check(split, name, self._remedy(name))
        return TrainingData(splits, notes=tuple(dict.fromkeys(notes)))

    def _remedy(self, split: str) -> str:
        """Return what to do about a split whose rows do not suffice."""
        if self.settings.validation is not None or split == "test":
            return "give other data"
        fraction = "raise --validation-fraction, " if split == "validation" else ""
        return f"add rows, {fraction}or give --validation"

    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Choose the pooling: the user's, else the base's, else the mean of all tokens, normalized."""
        self._pooling = self._normalized(self._given_pooling(base) or Pooling())

    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return the texts of all rows as tokens."""
        from rmlora.training.embedding_rows import EmbeddingRows

        check_padding(self._pooling, processor)
        inputs, limit = self.task.inputs, self.settings.token_limit
        return {
            name: EmbeddingRows(split.texts, self._problem.targets(split), inputs, processor, limit)
            for name, split in data.splits.items()
        }

    def _trainer_class(self) -> type[Any]:
        from rmlora.training.embedding_trainer import EmbeddingTrainer, GroupedEmbeddingTrainer

        return GroupedEmbeddingTrainer if self.settings.group_by_length else EmbeddingTrainer

    def write_files(self, directory: Path, processor: Any) -> None:
        """Write the files with which sentence-transformers loads the package."""
        write_pooling(directory, self._pooling, width=self._width, max_length=self.settings.token_limit)
        save_processor(processor, directory, source=self.settings.base)
