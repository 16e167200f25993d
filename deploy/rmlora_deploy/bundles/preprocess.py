"""From texts or images to the arrays a graph takes, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.errors import InputError
from rmlora.images import open_image
from rmlora.processors import load_processor
from rmlora.tasks import Task, get_task
from rmlora_deploy.runtime.outputs import Arrays

__all__ = ["Preprocessor"]


@dataclass(frozen=True)
class Preprocessor:
    """The tokenizer or image processor of a model directory, and the names its graph takes."""

    task: Task
    processor: Any
    max_length: int | None
    input_names: tuple[str, ...]

    @classmethod
    def open(cls, directory: Path, task: str, *, max_length: int | None, input_names: Sequence[str]) -> Preprocessor:
        """Read the processor files in ``directory``.

        Args:
            directory: a bundle or a base.
            task: task name.
            max_length: tokens a text is cut to; None keeps the tokenizer's own limit.
            input_names: inputs of the graph; others the processor makes are dropped.

        Raises:
            CheckpointError: there is no usable processor.
        """
        known = get_task(task)
        return cls(known, load_processor(directory, known), max_length, tuple(input_names))

    def __call__(self, inputs: Sequence[Any], *, lengths: Sequence[int | None] | None = None) -> Arrays:
        """Return a padded batch: ``[rows, tokens]`` int64, or ``[rows, channels, height, width]`` float32.

        Args:
            inputs: texts; or image paths, encoded images or PIL images.
            lengths: tokens that each text is cut to; without, all to ``max_length``.

        Raises:
            InputError: no inputs, an empty text, or an image that cannot be read.
        """
        return self.collate(self.rows(inputs, lengths=lengths))

    def rows(self, inputs: Sequence[Any], *, lengths: Sequence[int | None] | None = None) -> list[Arrays]:
        """Return every input by itself: arrays without the batch axis, not padded; arguments and errors as for a batch."""
        if not inputs:
            raise InputError("There is nothing to process: give at least one input.")
        if self.task.modality == "image":
            images = [open_image(value) for value in inputs]
            made = self.processor(images, return_tensors="np")
            return [{"pixel_values": pixels} for pixels in np.asarray(made["pixel_values"], dtype=np.float32)]
        for number, text in enumerate(inputs):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"Text {number + 1} is empty: every input needs at least one word.")
        return list(self._tokenized(inputs, [self.max_length] * len(inputs) if lengths is None else lengths))

    def collate(self, rows: Sequence[Arrays]) -> Arrays:
        """Return the batch of ``rows``, padded to the longest on the side where the tokenizer pads."""
        if self.task.modality == "image":
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        widest = max(len(next(iter(row.values()))) for row in rows)
        batch: Arrays = {}
        for name in rows[0]:
            batch[name] = np.full((len(rows), widest), self._padding(name), np.int64)
            for number, row in enumerate(rows):
                part = slice(widest - len(row[name]), None) if self.pads_left else slice(len(row[name]))
                batch[name][number, part] = row[name]
        return batch

    @property
    def pads_left(self) -> bool:
        """Whether the tokenizer puts padding before a text."""
        return getattr(self.processor, "padding_side", "right") == "left"

    def _padding(self, name: str) -> int:
        known = {"input_ids": "pad_token_id", "token_type_ids": "pad_token_type_id"}
        return int(getattr(self.processor, known[name]) or 0) if name in known else 0

    def _tokenized(self, texts: Sequence[str], lengths: Sequence[int | None]) -> Iterator[Arrays]:
        for number, length in enumerate(lengths):
            if number == 0 or length != lengths[number - 1]:  # texts of one length are tokenized together
                same = next((i for i in range(number, len(lengths)) if lengths[i] != length), len(lengths))
                made = self.processor(list(texts[number:same]), truncation=True, max_length=length)
                missing = [name for name in self.input_names if name not in made]
                if missing:
                    raise InputError(
                        f"The tokenizer does not make '{missing[0]}', which the graph takes: the bundle is inconsistent."
                    )
                columns = [made[name] for name in self.input_names]
                for row in zip(*columns, strict=True):
                    yield {name: np.asarray(ids, np.int64) for name, ids in zip(self.input_names, row, strict=True)}
