"""An opened bundle with its request queue: turns inputs into rows, and computes rows in batches."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
from rmlora.inputs import Arrays
from rmlora.storage import sha256_file
from rmlora_converters.graph.files.model_file import load_model
from rmlora_converters.graph.locate.id_limits import check_ids, id_limits
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.convert_adapter import TryOut
from rmlora_deploy.bundles.mapped_files import MappedFiles
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.runtime import AdapterSession
from rmlora_deploy.runtime.adapters.cache import AdapterCache
from rmlora_deploy.runtime.graph_logits import check_output
from rmlora_deploy.runtime.providers import run_error
from rmlora_deploy.serving.availability import Availability
from rmlora_deploy.serving.errors import UnavailableError, UnknownModelError
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.queue import RequestQueue, Row
from rmlora_deploy.serving.serve_settings import ServeSettings
from rmlora_deploy.serving.text_prefix import TextPrefix

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
        self._max_batch = settings.max_batch
        self._preprocessor: Preprocessor = bundle.preprocessor()
        """Used in the event loop only: a tokenizer keeps its truncation settings in itself."""
        self.id_limits = id_limits(load_model(bundle.model_path))
        """Input → number of ids; a GPU would not refuse others, whether clients or a tokenizer with more ids made them."""
        self._large = _LargeInputs(self._preprocessor)
        self.availability = Availability(name, MappedFiles(bundle))
        self.session: AdapterSession | None = None
        """None if the bundle is merged."""
        if bundle.mode == "branches":
            self.session = bundle.adapter_session(
                settings.provider,
                threads=settings.threads,
                max_active_adapters=settings.max_active_adapters,
                rows=settings.max_batch,
                max_concurrent_runs=settings.workers + 1,  # one more for heavy requests
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
            timeout=settings.timeout,
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

    @property
    def truncation_side(self) -> str:
        """On which side long texts are cut: ``right`` or ``left``."""
        return str(getattr(self._preprocessor.processor, "truncation_side", "right"))

    def warm_up(self) -> None:
        """Compute the task's built-in inputs twice: the first batches are slow, and the queue must know how long rows take."""
        kind = self.bundle.task.inputs
        rows = self._preprocessor.rows(kind.sample(self._max_batch))
        for batch in (rows[:1], rows):
            started = time.monotonic()
            self._run(self._preprocessor.collate(batch), len(batch))
            seconds = time.monotonic() - started
        self.queue.admission.times.learn([kind.tokens(row) for row in rows], seconds, busy=False)

    def small_rows(self, inputs: Sequence[Any], model: ServedModel) -> list[Row]:
        """Return the rows for ``model`` of short texts, in the event loop; errors as those of the preprocessor."""
        return self._rows(self._preprocessor, inputs, model)

    def rows(self, inputs: Sequence[Any], model: ServedModel) -> list[Row]:
        """Return the rows for ``model`` of texts or images, in any other thread; errors as those of the preprocessor."""
        with self._large as (preprocessor, shorten):
            if shorten is not None and not self.bundle.task.inputs.reads_whole:
                inputs = [shorten.input(value, model.max_length) for value in inputs]
            return self._rows(preprocessor, inputs, model)

    def _rows(self, preprocessor: Preprocessor, inputs: Sequence[Any], model: ServedModel) -> list[Row]:
        """Return a row for each input, or several where an input has several parts."""
        kind = self.bundle.task.inputs
        inputs = [part for value in inputs for part in preprocessor.parts(value, length=model.max_length)]
        return [
            Row(arrays, model.adapter, _FROM_INPUTS, kind.tokens(arrays))
            for arrays in preprocessor.rows(inputs, lengths=[model.max_length] * len(inputs))
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

    def submit(
        self,
        rows: Sequence[Row],
        *,
        deadline: float | None = None,
        checked: bool = False,
        ticket: int | None = None,
    ) -> Future[list[Answer]]:
        """Queue rows, and load their adapters while they wait; arguments and errors as :meth:`RequestQueue.submit`.

        Raises:
            UnavailableError: an adapter of the rows, or the graph, cannot be used.
        """
        self.availability.check(row.adapter for row in rows)
        answers = self.queue.submit(rows, deadline=deadline, checked=checked, ticket=ticket)
        if self.session is not None:
            self.session.prefetch([row.adapter for row in rows])
        return answers

    def _run(self, batch: Arrays, rows: int) -> None:
        """Run a batch on the base, on an adapter if the base answers nothing alone, or on what was merged into the base."""
        if self.session is not None:
            names = [None] if self.answers_alone else self.session.cache.names[:1]
            if names:
                self.session.run(batch, names * rows)
        else:
            self._merged.run(None, batch)

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
        batch = self._preprocessor.collate([row.arrays for row in rows])
        check_ids(batch, self.id_limits)
        try:
            output = np.asarray(self._merged.run(None, batch)[0])
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error) from None
        return list(check_output(output, len(rows)))


class _LargeInputs:
    """A second preprocessor, for everything that may take long: what is short never waits for it. Lent to one at a time."""

    def __init__(self, preprocessor: Preprocessor) -> None:
        self._original = preprocessor
        self._lock = threading.Lock()
        self._made: tuple[Preprocessor, TextPrefix | None] | None = None

    def __enter__(self) -> tuple[Preprocessor, TextPrefix | None]:
        self._lock.acquire()
        try:
            if self._made is None:  # many servers never read a long text
                self._made = self._copy()
            return self._made
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _copy(self) -> tuple[Preprocessor, TextPrefix | None]:
        if not self._original.task.inputs.varies_in_length:  # an image processor does not change while it works
            return self._original, None
        preprocessor = copy.deepcopy(self._original)
        return preprocessor, TextPrefix(preprocessor.processor)
