"""Training of labels for words: tagged texts, cross-entropy of every word's first token, F1 of entities."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmlora.entities import TagScheme
from rmlora.errors import InputError, TrainingError, require
from rmlora.torch_models import TaskModel
from rmlora.training.data import Columns
from rmlora.training.ignored import IGNORED
from rmlora.training.tag_report import TagReport, distrust_tags, report_tags
from rmlora.training.tagged_data import load_tagged, order_tags
from rmlora.training.task_training import Evaluation, TaskTraining, TrainingData
from rmlora.wording import counted

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.training.features import Examples
    from rmlora.training.tagged_rows import TaggedRows

__all__ = ["TokenTraining"]


class TokenTraining(TaskTraining):
    """Training for :class:`rmlora.token_labels.TokenLabels`."""

    _rows: dict[str, TaggedRows]

    def load(self) -> TrainingData:
        """Read tagged texts, and number the tags."""
        require("seqeval", "train")
        settings = self.settings
        splits = load_tagged(
            settings.sources,
            Columns(settings.text_column, settings.label_column),
            settings.reading,
            tags=settings.labels,
            validation_fraction=settings.validation_fraction,
            seed=settings.data_seed,
        )
        self._tags = tuple(settings.labels or order_tags(splits["train"]))
        notes = [note for split in splits.values() for note in split.notes]
        if not TagScheme.of(self._tags).prefixed:
            notes.append(
                "The tags have no prefixes such as B- and I-, so they mark words and not entities: precision, recall and F1 are "
                "those of single words."
            )
        return TrainingData(splits, self._tags, tuple(dict.fromkeys(notes)))

    def check_data(self, data: TrainingData, processor: Any) -> TrainingData:
        """Return the texts as tokens, and say which words have none."""
        index = {tag: number for number, tag in enumerate(self._tags)}
        self._rows, notes = {}, list(data.notes)
        for name, split in data.splits.items():
            sentences = [text.sentence for text in split.texts]
            numbers = [[index[tag] for tag in text.tags] for text in split.texts]
            rows: Any = self.task.inputs.examples(sentences, numbers, processor, self.settings.token_limit)
            self._rows[name] = rows
            notes += self._unread(rows, split.source)
            if not rows.learned:
                raise InputError(f"No word of the {name} data has a token: check --text-column.")
        return TrainingData(self._rows, self._tags, tuple(dict.fromkeys(notes)))

    def _unread(self, rows: TaggedRows, source: str) -> list[str]:
        notes = []
        if rows.cut_words:
            limit = self.settings.token_limit
            notes.append(
                f"{counted(rows.cut_words, 'word')} in {counted(rows.cut_texts, 'text')} of {source} lie beyond {limit} tokens: "
                "they are neither learned nor measured; raise --max-length."
            )
        if rows.wordless:
            notes.append(
                f"{counted(rows.wordless, 'word')} of {source} have no token of their own: they are neither learned nor measured."
            )
        return notes

    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Accept every base: a head that it lacks is trained."""

    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return the texts with the number of every word's tag at its first token."""
        return dict(data.splits)

    def trainer(self, arguments: Mapping[str, Any], examples: Mapping[str, Examples], processor: Any) -> Trainer:
        """Return a trainer whose loss is a mean over all words of a step."""
        from rmlora.training.best_checkpoint import BestCheckpointTrainer
        from rmlora.training.sampler import LengthGroupingTrainer
        from rmlora.training.tagged_rows import kept_of_scores, tag_loss

        kind: type[Trainer] = LengthGroupingTrainer if self.settings.group_by_length else BestCheckpointTrainer
        return kind(
            compute_metrics=partial(_metrics, tags=self._tags),
            preprocess_logits_for_metrics=kept_of_scores,
            compute_loss_func=tag_loss,
            **arguments,
        )

    def evaluate(self, trainer: Trainer, examples: Mapping[str, Examples], split: str) -> Evaluation:
        """Return F1, precision, recall, accuracy and loss, with the figures of every label."""
        output: Any = trainer.predict(examples[split], metric_key_prefix=split)
        report, loss = _report(output, self._tags)
        if loss != loss:
            raise TrainingError(f"The trained model's {split} loss is NaN: lower --learning-rate.")
        scores = {
            "f1": report.f1,
            "precision": report.precision,
            "recall": report.recall,
            "accuracy": report.accuracy,
            "loss": loss,
        }
        details = {"per_class": report.per_class, "of_entities": report.of_entities}
        return Evaluation(scores, details, tuple(distrust_tags(report, split)))

    def metadata(self, model: PeftModel) -> dict[str, Any]:
        """Return the tags."""
        return {"labels": list(self._tags)}


def _metrics(prediction: Any, *, tags: tuple[str, ...]) -> dict[str, float]:
    report, loss = _report(prediction, tags)
    return {
        "loss": loss,
        "f1": report.f1,
        "precision": report.precision,
        "recall": report.recall,
        "accuracy": report.accuracy,
    }


def _report(prediction: Any, tags: tuple[str, ...]) -> tuple[TagReport, float]:
    """Return the figures of an evaluation, and its loss per word; the trainer's own loss is a mean over batches."""
    kept, numbers = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    true, predicted = [], []
    for row, labels in zip(kept, numbers, strict=True):
        learned = labels != IGNORED
        true.append([tags[number] for number in labels[learned]])
        predicted.append([tags[int(number)] for number in row[learned, 0]])
    return report_tags(true, predicted, tags), float(kept[..., 1][numbers != IGNORED].mean(dtype=np.float64))
