"""From texts or images to the arrays a graph takes, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
from rmlora.images import open_image
from rmlora.models import load_processor
from rmlora.tasks import Task, get_task

__all__ = ["Arrays", "Preprocessor"]

Arrays = dict[str, npt.NDArray[np.generic]]


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
        if not inputs:
            raise InputError("There is nothing to process: give at least one input.")
        if self.task.modality == "image":
            images = [open_image(value) for value in inputs]
            made = self.processor(images, return_tensors="np")
            return {"pixel_values": np.asarray(made["pixel_values"], dtype=np.float32)}
        for number, text in enumerate(inputs):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"Text {number + 1} is empty: every input needs at least one word.")
        made = self._tokenised(inputs, [self.max_length] * len(inputs) if lengths is None else lengths)
        missing = [name for name in self.input_names if name not in made]
        if missing:
            raise InputError(
                f"The tokenizer does not make '{missing[0]}', which the graph takes: the bundle is inconsistent."
            )
        return {name: np.asarray(made[name], dtype=np.int64) for name in self.input_names}

    def _tokenised(self, texts: Sequence[str], lengths: Sequence[int | None]) -> Any:
        if len(set(lengths)) == 1:
            options = {"padding": True, "return_tensors": "np"}
            return self.processor(list(texts), truncation=True, max_length=lengths[0], **options)
        each = [
            self.processor(text, truncation=True, max_length=length)
            for text, length in zip(texts, lengths, strict=True)
        ]
        return self.processor.pad({name: [item[name] for item in each] for name in each[0]}, return_tensors="np")
