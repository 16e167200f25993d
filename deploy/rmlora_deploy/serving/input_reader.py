"""Makes rows of a client's texts, images or tensors, and bounds the work that this takes.

Everything that may take long runs in a few threads of low priority, in pieces: the pieces of several requests take
turns, and a request whose client is gone or whose time is over gets no further piece.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from rmlora.errors import InputError
from rmlora.text_pair import TextPair, check_form, texts_of
from rmlora.tokenized_texts import check_texts
from rmlora_converters.graph.locate.id_limits import check_ids
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName
from rmlora_deploy.serving.errors import LateError, TooLargeError
from rmlora_deploy.serving.images import SentImage
from rmlora_deploy.serving.model_runner import ModelRunner
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.serve_settings import ServeSettings
from rmlora_deploy.serving.supervised import run_in_background
from rmlora_deploy.serving.waiting_rows import Answer, Row

__all__ = ["InputReader"]

_Result = TypeVar("_Result")

_INLINE_CHARACTERS = 2000
"""Texts up to this length in all are tokenized in the event loop, which takes a fraction of a millisecond."""
_PIECE_CHARACTERS, _PIECE_TEXTS = 20_000, 32
"""Texts that are tokenized at once: so many, or one that is longer."""
_THREADS = 4
"""Most threads that tokenize and decode; on a machine with few cores, half as many as it has cores."""
_NICENESS = 11
"""How much lower their priority is than that of the threads that compute batches; those for heavy requests are in between."""
_LARGE_PIXELS = 4_000_000
"""Images with more pixels than this are decoded one at a time, because of the memory that it takes."""


class InputReader:
    """Reads inputs.

    Args:
        settings: limits.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, min(_THREADS, cores // 2))
        self._threads = ThreadPoolExecutor(threads, "reader", initializer=partial(run_in_background, _NICENESS))
        self._large_image = asyncio.Lock()

    async def read(self, inputs: Sequence[str | TextPair], model: ServedModel, deadline: float) -> list[Row]:
        """Return the rows of texts, pairs of texts or images: one for each, or several for a question with a long context.

        Raises:
            InputError: there are too many inputs, or one is too long, empty or unreadable.
            TooLargeError: all together are too long or too large.
            LateError: ``deadline`` (``time.monotonic``) has passed.
        """
        self.check_count(len(inputs))
        if not model.task.inputs.takes_pairs and any(isinstance(value, TextPair) for value in inputs):
            raise InputError(f"'{model.id}' is for {model.task.name} and takes no pairs of texts.")
        for number, value in enumerate(inputs, 1):
            check_form(value, model.input_form, number=number, name=model.id)
        read: dict[str, Callable[..., Awaitable[list[Row]]]] = {"text": self._read_texts, "image": self._read_images}
        return await read[model.task.inputs.modality](inputs, model, deadline)

    def check_count(self, count: int) -> None:
        """Raise :class:`InputError` unless a request may have so many inputs."""
        if not 1 <= count <= self._settings.max_inputs:
            raise InputError(f"A request takes 1 to {self._settings.max_inputs} inputs, not {count} (--max-inputs).")

    def check_parts(self, count: int) -> None:
        """Raise :class:`InputError` unless an input may be read in so many parts."""
        if count > self._settings.max_inputs:
            raise InputError(
                f"The context is read in {count} windows; the limit is {self._settings.max_inputs} (--max-inputs): send a part of it."
            )

    def close(self) -> None:
        """Read nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- texts -------------------------------------------------------------------------------------------------------

    async def _read_texts(self, texts: Sequence[str | TextPair], model: ServedModel, deadline: float) -> list[Row]:
        total = self._check_texts(texts)
        if total <= _INLINE_CHARACTERS:
            return model.runner.small_rows(texts, model)
        rows: list[Row] = []
        for piece in _pieces(texts):
            rows += await self._run(partial(model.runner.rows, piece, model), deadline)
        return rows

    def _check_texts(self, inputs: Sequence[str | TextPair]) -> int:
        """Return the number of characters in all; errors as :meth:`read`."""
        limit, total = self._settings.max_characters, 0
        for number, value in enumerate(inputs, 1):
            longest = max(map(len, texts_of(value)))
            if longest > limit:
                raise InputError(f"Input {number} has {longest} characters; the limit is {limit} (--max-characters).")
            total += _characters(value)
        if total > self._settings.max_request_characters:
            raise TooLargeError(
                f"The inputs have {total} characters in all; the limit is {self._settings.max_request_characters} "
                "(--max-request-characters): send fewer at once."
            )
        check_texts(inputs)
        return total

    # -- images ------------------------------------------------------------------------------------------------------

    async def _read_images(self, urls: Sequence[str], model: ServedModel, deadline: float) -> list[Row]:
        """Return a row for every image. Nothing is decoded before the sizes of all are known."""
        images, limit, total = list[SentImage](), self._settings.max_request_pixels, 0
        for number, url in enumerate(urls, 1):
            images.append(await self._run(partial(SentImage, url, number, self._settings.max_pixels), deadline))
            total += images[-1].pixels
            if total > limit:
                raise TooLargeError(
                    f"The first {number} images have {total} pixels in all; the limit is {limit} "
                    "(--max-request-pixels): send fewer or smaller ones at once."
                )
        rows: list[Row] = []
        for image in images:
            work = partial(_image_rows, image, model)
            if image.pixels <= _LARGE_PIXELS:
                rows += await self._run(work, deadline)
            else:
                async with self._large_image:
                    rows += await self._run(work, deadline)
        return rows

    async def _run(self, work: Callable[[], _Result], deadline: float) -> _Result:
        """Return the result of ``work``, which runs in one of the threads.

        Raises:
            LateError: it takes longer than until ``deadline``.
        """
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(
                loop.run_in_executor(self._threads, work), max(0.0, deadline - time.monotonic())
            )
        except TimeoutError:
            raise LateError(f"There was no answer within {self._settings.timeout:g} s: try again later.") from None

    # -- tensors -----------------------------------------------------------------------------------------------------

    def tensor_rows(
        self, runner: ModelRunner, tensors: dict[str, Answer], adapters: Sequence[AdapterName | None]
    ) -> list[Row]:
        """Return rows of raw tensors (batch first), which are batched only with others of the same shape.

        Raises:
            InputError: tensors are missing, unknown, of another type or shape than the graph's inputs, or hold ids that the
                model does not have.
        """
        inputs = runner.bundle.manifest.model.inputs
        names = [item.name for item in inputs]
        if sorted(tensors) != sorted(names):
            raise InputError(f"The model takes the inputs {', '.join(names)}.")
        tokens = 0
        for item in inputs:
            tensor, shape = tensors[item.name], item.shape
            fits = tensor.ndim == len(shape) and all(
                not isinstance(size, int) or size == given for size, given in zip(shape, tensor.shape, strict=True)
            )
            if not fits or 0 in tensor.shape or tensor.shape[0] != len(adapters):
                raise InputError(f"'{item.name}' has the shape {list(tensor.shape)}, but the model takes {shape}.")
            if tensor.dtype != np.dtype({"float": "float32"}.get(str(item.dtype), item.dtype)):
                raise InputError(f"'{item.name}' is {tensor.dtype}, but the model takes {item.dtype}.")
            if item.dtype == "int64":
                tokens = tensor.shape[1]
                if tokens > runner.max_tokens:
                    raise InputError(f"'{item.name}' has {tokens} tokens; the limit is {runner.max_tokens}.")
        check_ids(tensors, runner.id_limits)
        batch_key = ("tensors", *(tensors[name].shape[1:] for name in names))
        return [
            Row({name: tensors[name][number] for name in names}, adapter, batch_key, tokens)
            for number, adapter in enumerate(adapters)
        ]


def _image_rows(image: SentImage, model: ServedModel) -> list[Row]:
    return model.runner.rows([image.decode()], model)


def _characters(value: str | TextPair) -> int:
    return sum(map(len, texts_of(value)))


def _pieces(inputs: Sequence[str | TextPair]) -> Iterator[Sequence[str | TextPair]]:
    """Yield the texts in pieces that take little time each."""
    start, characters = 0, 0
    for index, value in enumerate(inputs):
        characters += _characters(value)
        if index > start and (characters > _PIECE_CHARACTERS or index - start >= _PIECE_TEXTS):
            yield inputs[start:index]
            start, characters = index, _characters(value)
    yield inputs[start:]
