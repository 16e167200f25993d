"""From texts or images to the arrays a graph takes, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmlora.errors import InputError
from rmlora.tasks import Task
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
    def open(cls, directory: Path, task: Task, *, max_length: int | None, input_names: Sequence[str]) -> Preprocessor:
        """Read the processor files in ``directory``.

        Args:
            directory: a bundle or a base.
            task: task name.
            max_length: tokens a text is cut to; None keeps the tokenizer's own limit.
            input_names: inputs of the graph; others the processor makes are dropped.

        Raises:
            CheckpointError: there is no usable processor.
        """
        return cls(task, task.inputs.load_processor(directory), max_length, tuple(input_names))

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
        limits = [self.max_length] * len(inputs) if lengths is None else lengths
        return self.task.inputs.rows(self.processor, inputs, lengths=limits, names=self.input_names)

    def collate(self, rows: Sequence[Arrays]) -> Arrays:
        """Return ``rows`` as one batch, padded to the longest where they differ in length."""
        return self.task.inputs.collate(self.processor, rows)
