"""An opened bundle with its request queue: turns inputs into rows, and computes rows in batches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
from rmlora.storage import sha256_file
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.convert_adapter import TryOut
from rmlora_deploy.bundles.mapped_files import MappedFiles
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime import AdapterSession
from rmlora_deploy.runtime.adapters.cache import AdapterCache
from rmlora_deploy.runtime.providers import run_error
from rmlora_deploy.serving.availability import Availability
from rmlora_deploy.serving.errors import UnavailableError, UnknownModelError
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.queue import RequestQueue, Row
from rmlora_deploy.serving.serve_settings import ServeSettings

__all__ = ["ModelRunner"]

_UNLIMITED = 1_000_000
"""Tokenizers without a limit report a number far above this."""

_FROM_INPUTS = "inputs"
"""Batch key of rows that the preprocessor made: all can be batched together, raw tensors only by shape."""

Answer = npt.NDArray[Any]
_log = logging.getLogger("rmlora.serve")


class ModelRunner:
    """Runs one bundle.

    Args:
        name: the bundle's name.
        bundle: what to run.
        settings: of the server.
        observe: called with the name, the rows and the seconds of every batch.
    """

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        settings: ServeSettings,
        observe: Callable[[str, Sequence[Row], float], None] | None = None,
    ) -> None:
        self.name, self.bundle = name, bundle
        self._preprocessor: Preprocessor = bundle.preprocessor()
        self._tokenizing = threading.Lock()  # a tokenizer keeps its truncation settings in itself
        self.availability = Availability(name, MappedFiles(bundle))
        self.session: AdapterSession | None = None
        """None if the bundle is merged."""
        if bundle.mode == "branches":
            self.session = bundle.adapter_session(
                settings.provider,
                threads=settings.threads,
                max_active_adapters=settings.max_active_adapters,
                rows=settings.max_batch,
                max_concurrent_runs=settings.workers,
            )
            self.availability.watch(self.session.cache)
            run = self._run_adapters
        else:
            self._merged = bundle.session(settings.provider, threads=settings.threads)
            run = self._run_merged
        self.queue = RequestQueue(
            self.availability.guarded(run),
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            workers=settings.workers,
            observe=partial(observe, name) if observe is not None else None,
        )

    @property
    def max_tokens(self) -> int:
        """Length of the longest text that the model can read."""
        limits = (
            getattr(self._preprocessor.processor, "model_max_length", None),
            self.bundle.manifest.max_length,
        )
        return max((int(limit) for limit in limits if limit and limit < _UNLIMITED), default=512)

    @property
    def answers_alone(self) -> bool:
        """True if it answers without an adapter: merged, or with a base that has a head of its own or needs none."""
        return self.session is None or self.session.untrained_head is None

    @property
    def cache(self) -> AdapterCache | None:
        """The adapter cache; None if the bundle is merged."""
        return self.session.cache if self.session is not None else None

    def rows(self, inputs: Sequence[Any], model: ServedModel) -> list[Row]:
        """Return a row for ``model`` from each text or image; errors as those of the preprocessor."""
        with self._tokenizing:
            return self._rows(inputs, model)

    def rows_without_waiting(self, inputs: Sequence[Any], model: ServedModel) -> list[Row] | None:
        """Return the same rows, or None if another thread is using the tokenizer: the event loop must not wait for it."""
        if not self._tokenizing.acquire(blocking=False):
            return None
        try:
            return self._rows(inputs, model)
        finally:
            self._tokenizing.release()

    def _rows(self, inputs: Sequence[Any], model: ServedModel) -> list[Row]:
        kind = self.bundle.task.inputs
        return [
            Row(arrays, model.adapter, _FROM_INPUTS, kind.tokens(arrays))
            for arrays in self._preprocessor.rows(inputs, lengths=[model.max_length] * len(inputs))
        ]

    def try_out(self) -> TryOut:
        """Return a batch on which new adapters are tried.

        Raises:
            UnavailableError: the bundle's reference file is not what it was.
        """
        assert self.session is not None  # noqa: S101 - only bundles with branches take adapters
        path = self.bundle.path / REFERENCE_FILE
        try:
            if sha256_file(path) != self.bundle.manifest.files.get(REFERENCE_FILE):
                raise InputError(f"{path} is not what it was when the server started (SHA-256).")
            return TryOut.of(self.bundle, self.session)
        except (OSError, InputError) as error:
            _log.error("%s cannot take adapters: %s", self.name, error)
            raise UnavailableError("No adapter can be loaded at the moment: the server's log says why.") from None

    def submit(self, rows: Sequence[Row]) -> Future[list[Answer]]:
        """Queue rows, and load their adapters while they wait; errors as those of :meth:`RequestQueue.submit`."""
        self.availability.check(row.adapter for row in rows)
        answers = self.queue.submit(rows)
        if self.session is not None:
            self.session.prefetch([row.adapter for row in rows])
        return answers

    def _run_adapters(self, rows: Sequence[Row]) -> Sequence[Answer]:
        assert self.session is not None  # noqa: S101 - only used for bundles with branches
        try:
            return self.session.run(
                self._preprocessor.collate([row.arrays for row in rows]), [row.adapter for row in rows]
            )
        except InputError:  # of the session: the rows themselves were checked when they were made
            known = self.session.cache.names
            if any(row.adapter is not None and row.adapter not in known for row in rows):
                raise UnknownModelError("The model was unloaded before this request was computed.") from None
            raise

    def _run_merged(self, rows: Sequence[Row]) -> Sequence[Answer]:
        try:
            return list(np.asarray(self._merged.run(None, self._preprocessor.collate([row.arrays for row in rows]))[0]))
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error) from None
