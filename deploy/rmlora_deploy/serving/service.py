"""From a client's inputs to a model's answers: limits, tokenizing, the queue, and the time that all of it may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, MutableMapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
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

_AT_ONCE = 2000
"""Characters that are tokenized without leaving the event loop; it takes a fraction of a millisecond."""


class Service:
    """What every route works with."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self.registry, self.metrics = registry, metrics
        self.settings: ServeSettings = registry.settings
        self._ends: float | None = None

    @property
    def stopping(self) -> bool:
        """Whether the server takes no more requests."""
        return self._ends is not None

    def stop(self, *, at_once: bool = False) -> float:
        """Take no more requests, and return the seconds that are left for those under way."""
        if self._ends is None or at_once:
            self._ends = time.monotonic() + (0.0 if at_once else self.settings.drain)
        return max(0.0, self._ends - time.monotonic())

    def stats(self) -> dict[str, Any]:
        """Return what the page shows."""
        models = self.registry.models
        return {
            **self.metrics.recent(),
            "waiting": self.registry.waiting,
            "models": len(models),
            "newest_model": max((model.created for model in models), default=0),
            "max_batch": self.settings.max_batch,
            "loads_adapters": bool(self.settings.adapter_dirs),
        }

    async def ask(
        self, model: ServedModel, inputs: Sequence[str], state: MutableMapping[str, Any]
    ) -> tuple[list[Answer], int]:
        """Return the model's answer to every text or picture, and the tokens that it read.

        Args:
            model: whom to ask.
            inputs: texts; for models of images, pictures as ``data:`` URLs.
            state: of the request, for the log.

        Raises:
            InputError: inputs are too many, too long, empty or unreadable.
            ServingError: the queue is full, the server stops, or the answer did not come in time.
        """
        self._check_count(len(inputs))
        end = time.monotonic() + self.settings.timeout
        state["model"], state["rows"] = model.id, len(inputs)
        model.graph.batcher.check(len(inputs))  # before work is put into them
        if model.graph.modality == "image":
            rows = await self._within(asyncio.to_thread(self._picture_rows, inputs, model, end), end)
        else:
            self._check_texts(inputs)
            made = model.graph.rows_at_once(inputs, model) if sum(map(len, inputs)) <= _AT_ONCE else None
            if made is None:
                made = await self._within(asyncio.to_thread(model.graph.rows, inputs, model), end)
            rows = made
        tokens = sum(len(next(iter(row.arrays.values()))) for row in rows) if model.graph.modality == "text" else 0
        state["tokens"] = tokens
        return await self._within(asyncio.wrap_future(model.graph.submit(rows)), end), tokens

    async def compute(
        self, graph: ModelRunner, rows: Sequence[Row], model: str, state: MutableMapping[str, Any]
    ) -> list[Answer]:
        """Queue rows and wait for their answers; errors as those of :meth:`ask`."""
        self._check_count(len(rows))
        state["model"], state["rows"] = model, len(rows)
        end = time.monotonic() + self.settings.timeout
        return await self._within(asyncio.wrap_future(graph.submit(rows)), end)

    async def _within(self, work: Awaitable[_Result], end: float) -> _Result:
        """Return what ``work`` gives unless it is later than ``end``."""
        try:
            return await asyncio.wait_for(work, max(0.0, end - time.monotonic()))
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> LateError:
        return LateError(f"The answer did not come within {self.settings.timeout:g} s: try again later.")

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self.settings.max_inputs:
            raise InputError(f"A request takes 1 to {self.settings.max_inputs} inputs, not {count}.")

    def _check_texts(self, texts: Sequence[str]) -> None:
        for number, text in enumerate(texts):
            if len(text) > self.settings.max_characters:
                raise InputError(
                    f"Input {number + 1} has {len(text)} characters, of at most {self.settings.max_characters}."
                )
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InputError(f"Input {number + 1} is not valid Unicode: it has half a surrogate pair.") from None

    def _picture_rows(self, inputs: Sequence[str], model: ServedModel, end: float) -> list[Row]:
        """Return a row for every picture, which are decoded one after the other: a small file can be a large picture."""
        rows: list[Row] = []
        for number, url in enumerate(inputs):
            if time.monotonic() > end:
                raise self._late()
            rows += model.graph.rows([decode_image(url, number + 1, self.settings.max_pixels)], model)
        return rows

    def tensor_rows(self, graph: ModelRunner, tensors: dict[str, Answer], adapters: Sequence[str | None]) -> list[Row]:
        """Return rows of ready tensors (batch first), computed only with others of their shape.

        Raises:
            InputError: tensors are missing, unknown, or of another type or shape than the graph's.
        """
        inputs = graph.bundle.manifest.model.inputs
        names = [item.name for item in inputs]
        if sorted(tensors) != sorted(names):
            raise InputError(f"The model takes the inputs {', '.join(names)}.")
        for item in inputs:
            tensor, shape = tensors[item.name], item.shape
            fits = tensor.ndim == len(shape) and all(
                not isinstance(size, int) or size == given for size, given in zip(shape, tensor.shape, strict=True)
            )
            if not fits or 0 in tensor.shape or tensor.shape[0] != len(adapters):
                raise InputError(f"'{item.name}' has the shape {list(tensor.shape)}, and the model takes {shape}.")
            if tensor.dtype != np.dtype({"float": "float32"}.get(str(item.dtype), item.dtype)):
                raise InputError(f"'{item.name}' is {tensor.dtype}, and the model takes {item.dtype}.")
            if item.dtype == "int64" and tensor.shape[1] > graph.max_tokens:
                raise InputError(f"'{item.name}' has {tensor.shape[1]} tokens, of at most {graph.max_tokens}.")
        batch_key = ("tensors", *(tensors[name].shape[1:] for name in names))
        return [
            Row({name: tensors[name][number] for name in names}, adapter, batch_key)
            for number, adapter in enumerate(adapters)
        ]
