"""From a client's inputs to a model's answers: reads them, queues their rows, and enforces the time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from rmlora.text_pair import TextPair
from rmlora_deploy.serving.errors import LateError, TooLargeError
from rmlora_deploy.serving.input_reader import InputReader
from rmlora_deploy.serving.json_bodies import JsonBodies
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.model_runner import ModelRunner
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.one_by_one import OneByOne
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.serve_settings import ServeSettings
from rmlora_deploy.serving.waiting_rows import Answer, Row

__all__ = ["Service"]


class Service:
    """What all routes use."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self.registry, self.metrics = registry, metrics
        self.settings: ServeSettings = registry.settings
        self.reader, self.json = InputReader(registry.settings), JsonBodies(registry.settings.max_inputs)
        self.loading = OneByOne("loading and unloading adapters")
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

    def close(self) -> None:
        """End the threads and processes that read requests and load adapters."""
        for part in (self.reader, self.json, self.loading):
            part.close()

    def problem(self) -> str | None:
        """Say why this process should be replaced; None if all is well."""
        problems = (runner.queue.problem() for runner in self.registry.runners.values())
        return next(filter(None, problems), None)

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
        self, model: ServedModel, inputs: Sequence[str | TextPair], state: MutableMapping[str, Any]
    ) -> tuple[list[Answer], int]:
        """Return the model's answer to every input, and the number of tokens it read; otherwise as :meth:`ask_rows`."""
        _, answers, tokens = await self.ask_rows(model, inputs, state)
        return answers, tokens

    async def ask_rows(
        self,
        model: ServedModel,
        inputs: Sequence[str | TextPair],
        state: MutableMapping[str, Any],
        *,
        whole: bool = False,
    ) -> tuple[list[Row], list[Answer], int]:
        """Return the rows of all texts, pairs of texts or images, the model's answers to them, and the number of tokens it read.

        Each input has one row, but a question with a long context has several.

        Args:
            model: the model to ask.
            inputs: texts and pairs of texts; for image models, images as ``data:`` URLs.
            state: of the request: ``returning`` and ``ticket`` are from the admission, the rest is for the access log.
            whole: refuse texts that have more tokens than the model reads; False reads them as far as it goes.

        Raises:
            InputError: there are too many inputs, or one is too long, empty or unreadable.
            ServingError: the queue is full, the server is shutting down, or there was no answer in time.
        """
        self.reader.check_count(len(inputs))
        deadline = self._deadline(state)
        state["model"], state["rows"] = model.id, len(inputs)
        _check(model.runner, len(inputs), state)  # before any work is done for them
        rows = await (self._whole_rows if whole else self.reader.read)(inputs, model, deadline)
        if len(rows) > len(inputs):
            self.reader.check_parts(len(rows))
            state["rows"] = len(rows)
            _check(model.runner, len(rows), state)
        tokens = sum(model.task.inputs.tokens(row.arrays) for row in rows)
        state["tokens"] = tokens
        return rows, await self._answers(model.runner, rows, deadline, state), tokens

    async def _whole_rows(self, inputs: Sequence[str | TextPair], model: ServedModel, deadline: float) -> list[Row]:
        """Read inputs with room for one more token than the model takes, and raise :class:`TooLargeError` if one needs it."""
        limit = model.max_length
        if limit is None:
            return await self.reader.read(inputs, model, deadline)
        rows = await self.reader.read(inputs, replace(model, max_length=limit + 1), deadline)
        for number, row in enumerate(rows, 1):
            if model.task.inputs.tokens(row.arrays) > limit:
                raise TooLargeError(
                    f"Input {number} has more than {limit} tokens, as many as '{model.id}' reads: shorten it, or let it be truncated."
                )
        return rows

    async def compute(
        self, runner: ModelRunner, rows: Sequence[Row], model: str, state: MutableMapping[str, Any]
    ) -> list[Answer]:
        """Queue rows and return their answers; errors as those of :meth:`ask`."""
        self.reader.check_count(len(rows))
        state["model"], state["rows"] = model, len(rows)
        _check(runner, len(rows), state)
        return await self._answers(runner, rows, self._deadline(state), state)

    def _deadline(self, state: MutableMapping[str, Any]) -> float:
        """Return when a request must be answered, counted from when it arrived."""
        started: float = state.get("started", time.monotonic())
        return started + self.settings.timeout

    async def _answers(
        self, runner: ModelRunner, rows: Sequence[Row], deadline: float, state: MutableMapping[str, Any]
    ) -> list[Answer]:
        ticket: int | None = state.get("ticket")
        work = asyncio.wrap_future(runner.submit(rows, deadline=deadline, checked=True, ticket=ticket))
        try:
            return await asyncio.wait_for(work, max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise LateError(f"There was no answer within {self.settings.timeout:g} s: try again later.") from None


def _check(runner: ModelRunner, rows: int, state: MutableMapping[str, Any]) -> None:
    """Raise an error if the queue has no room for so many rows; a single one may have been checked already."""
    known: bool | None = state.get("returning")
    if known is None or rows > 1:
        state["returning"] = runner.queue.check(rows, ticket=state.get("ticket"), returning=bool(known))
