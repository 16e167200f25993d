"""From texts or images to a graph's inputs, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmlora.errors import InputError
from rmlora.inputs import Arrays
from rmlora.tasks import Task

__all__ = ["Preprocessor"]


@dataclass(frozen=True)
class Preprocessor:
    """A tokenizer or image processor, set up for the inputs of one graph."""

    task: Task
    processor: Any
    max_length: int | None
    input_names: tuple[str, ...]

    @classmethod
    def open(
        cls,
        directory: Path,
        task: Task,
        *,
        max_length: int | None,
        input_names: Sequence[str],
        trust_remote_code: bool = False,
    ) -> Preprocessor:
        """Read the processor files in ``directory``.

        Args:
            directory: a bundle or a base.
            task: of the model.
            max_length: tokens a text is cut to; None keeps the tokenizer's own limit.
            input_names: inputs of the graph; other arrays that the processor makes are dropped.
            trust_remote_code: run code that comes with the processor.

        Raises:
            CheckpointError: the directory has no usable processor.
        """
        processor = task.inputs.load_quick_processor(directory, trust_remote_code=trust_remote_code)
        return cls(task, processor, max_length, tuple(input_names))

    def __call__(self, inputs: Sequence[Any], *, lengths: Sequence[int | None] | None = None) -> Arrays:
        """Return a padded batch: ``[rows, tokens]`` int64, or ``[rows, channels, height, width]`` float32.

        Args:
            inputs: texts; or image paths, encoded images or PIL images.
            lengths: tokens that each text is cut to; None cuts all to ``max_length``.

        Raises:
            InputError: ``inputs`` is empty or holds an empty text or an unreadable image.
        """
        return self.collate(self.rows(inputs, lengths=lengths))

    def rows(self, inputs: Sequence[Any], *, lengths: Sequence[int | None] | None = None) -> list[Arrays]:
        """Return the arrays of each input, unpadded and without the batch axis; arguments and errors as for a batch."""
        if not inputs:
            raise InputError("There is nothing to process: give at least one input.")
        limits = [self.max_length] * len(inputs) if lengths is None else lengths
        return self.task.inputs.rows(self.processor, inputs, lengths=limits, names=self.input_names)

    def parts(self, value: Any, *, length: int | None = None) -> list[Any]:
        """Return the inputs, one row each, that are computed for one input.

        Args:
            value: text, pair of texts, or image.
            length: tokens of a row; None for ``max_length``.

        Raises:
            InputError: the input cannot be used.
        """
        return self.task.inputs.parts(self.processor, value, length or self.max_length)

    def collate(self, rows: Sequence[Arrays]) -> Arrays:
        """Return ``rows`` as one batch, padded to the longest row."""
        return self.task.inputs.collate(self.processor, rows)
