"""From a client's inputs to a model's answers: checks limits, makes rows, queues them, and enforces the time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, MutableMapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName
from rmlora_deploy.serving.errors import LateError
from rmlora_deploy.serving.images import decode_image
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.model_runner import ModelRunner
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.queue import Row
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["Service"]

Answer = npt.NDArray[Any]
_Result = TypeVar("_Result")

_INLINE_CHARACTERS = 2000
"""Texts up to this length in all are tokenized in the event loop, which takes a fraction of a millisecond."""


class Service:
    """What all routes use."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self.registry, self.metrics = registry, metrics
        self.settings: ServeSettings = registry.settings
        self._read = {"text": self._read_texts, "image": self._read_images}
        """Kind of input → what makes rows of a client's inputs."""
        self._drained_at: float | None = None
        """When the server stops waiting for requests in progress; None while it accepts new ones."""

    @property
    def stopping(self) -> bool:
        """True if the server accepts no more requests."""
        return self._drained_at is not None

    def stop(self, *, at_once: bool = False) -> float:
        """Accept no more requests, and return the seconds left for those in progress."""
        if self._drained_at is None or at_once:
            self._drained_at = time.monotonic() + (0.0 if at_once else self.settings.drain)
        return max(0.0, self._drained_at - time.monotonic())

    def stats(self) -> dict[str, Any]:
        """Return what the page shows."""
        models = self.registry.models
        return {
            **self.metrics.recent(),
            "waiting": self.registry.waiting,
            "models": len(models),
            "unavailable": sum(not self.registry.available(model) for model in models),
            "newest_model": max((model.created for model in models), default=0),
            "max_batch": self.settings.max_batch,
            "no_loading": self.registry.no_loading,
        }

    async def ask(
        self, model: ServedModel, inputs: Sequence[str], state: MutableMapping[str, Any]
    ) -> tuple[list[Answer], int]:
        """Return the model's answer to every text or image, and the number of tokens it read.

        Args:
            model: the model to ask.
            inputs: texts; for image models, images as ``data:`` URLs.
            state: of the request, for the access log.

        Raises:
            InputError: there are too many inputs, or one is too long, empty or unreadable.
            ServingError: the queue is full, the server is shutting down, or there was no answer in time.
        """
        self._check_count(len(inputs))
        deadline = time.monotonic() + self.settings.timeout
        state["model"], state["rows"] = model.id, len(inputs)
        runner = model.runner
        runner.queue.check(len(inputs))  # before any work is done for them
        rows = await self._read[model.task.inputs.modality](inputs, model, deadline)
        tokens = sum(model.task.inputs.tokens(row.arrays) for row in rows)
        state["tokens"] = tokens
        return await self._within(asyncio.wrap_future(runner.submit(rows)), deadline), tokens

    async def compute(
        self, runner: ModelRunner, rows: Sequence[Row], model: str, state: MutableMapping[str, Any]
    ) -> list[Answer]:
        """Queue rows and return their answers; errors as those of :meth:`ask`."""
        self._check_count(len(rows))
        state["model"], state["rows"] = model, len(rows)
        deadline = time.monotonic() + self.settings.timeout
        return await self._within(asyncio.wrap_future(runner.submit(rows)), deadline)

    async def _within(self, work: Awaitable[_Result], deadline: float) -> _Result:
        """Return the result of ``work``; errors if it takes longer than until ``deadline``."""
        try:
            return await asyncio.wait_for(work, max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> LateError:
        return LateError(f"There was no answer within {self.settings.timeout:g} s: try again later.")

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self.settings.max_inputs:
            raise InputError(f"A request takes 1 to {self.settings.max_inputs} inputs, not {count}.")

    def _check_texts(self, texts: Sequence[str]) -> None:
        for number, text in enumerate(texts, 1):
            if len(text) > self.settings.max_characters:
                raise InputError(
                    f"Input {number} has {len(text)} characters; the limit is {self.settings.max_characters}."
                )
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InputError(f"Input {number} is not valid Unicode: it has half of a surrogate pair.") from None

    async def _read_texts(self, inputs: Sequence[str], model: ServedModel, deadline: float) -> list[Row]:
        """Return a row for every text; short ones are tokenized without leaving the event loop."""
        self._check_texts(inputs)
        short = sum(map(len, inputs)) <= _INLINE_CHARACTERS
        made = model.runner.rows_without_waiting(inputs, model) if short else None
        if made is not None:
            return made
        return await self._within(asyncio.to_thread(model.runner.rows, inputs, model), deadline)

    async def _read_images(self, inputs: Sequence[str], model: ServedModel, deadline: float) -> list[Row]:
        """Return a row for every image, decoded in another thread."""
        return await self._within(asyncio.to_thread(self._image_rows, inputs, model, deadline), deadline)

    def _image_rows(self, inputs: Sequence[str], model: ServedModel, deadline: float) -> list[Row]:
        """Return a row for every image. They are decoded one at a time, since a small file can hold a large image."""
        rows: list[Row] = []
        for number, url in enumerate(inputs, 1):
            if time.monotonic() > deadline:
                raise self._late()
            rows += model.runner.rows([decode_image(url, number, self.settings.max_pixels)], model)
        return rows

    def tensor_rows(
        self, runner: ModelRunner, tensors: dict[str, Answer], adapters: Sequence[AdapterName | None]
    ) -> list[Row]:
        """Return rows of raw tensors (batch first), which are batched only with others of the same shape.

        Raises:
            InputError: tensors are missing, unknown, or of another type or shape than the graph's inputs.
        """
        inputs = runner.bundle.manifest.model.inputs
        names = [item.name for item in inputs]
        if sorted(tensors) != sorted(names):
            raise InputError(f"The model takes the inputs {', '.join(names)}.")
        for item in inputs:
            tensor, shape = tensors[item.name], item.shape
            fits = tensor.ndim == len(shape) and all(
                not isinstance(size, int) or size == given for size, given in zip(shape, tensor.shape, strict=True)
            )
            if not fits or 0 in tensor.shape or tensor.shape[0] != len(adapters):
                raise InputError(f"'{item.name}' has the shape {list(tensor.shape)}, but the model takes {shape}.")
            if tensor.dtype != np.dtype({"float": "float32"}.get(str(item.dtype), item.dtype)):
                raise InputError(f"'{item.name}' is {tensor.dtype}, but the model takes {item.dtype}.")
            if item.dtype == "int64" and tensor.shape[1] > runner.max_tokens:
                raise InputError(f"'{item.name}' has {tensor.shape[1]} tokens; the limit is {runner.max_tokens}.")
        batch_key = ("tensors", *(tensors[name].shape[1:] for name in names))
        return [
            Row({name: tensors[name][number] for name in names}, adapter, batch_key)
            for number, adapter in enumerate(adapters)
        ]
