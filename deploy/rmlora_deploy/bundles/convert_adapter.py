"""From an adapter to the arrays of a graph's LoRA inputs, with every check: used by export, ``adapter add`` and the server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.adapter import Adapter
from rmlora.adapter_task import complete_labels, drop_unused_modules, task_of
from rmlora.errors import AdapterError
from rmlora.inputs import Arrays
from rmlora.scoring import FunctionToApply
from rmlora.tasks import Task
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.choose_pooling import check_pooling
from rmlora_deploy.bundles.manifest import PoolingEntry
from rmlora_deploy.bundles.processor import trained_length
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.runtime import AdapterKey, AdapterRef, AdapterSession
from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession

__all__ = ["ConvertedAdapter", "TryOut", "convert_adapter"]

AnyArray = npt.NDArray[Any]

_ROUNDING = 1e-6
"""Largest difference from the base's outputs, relative to the largest output, that rounding alone explains."""

_attempts = itertools.count(1)


@dataclass(frozen=True)
class ConvertedAdapter:
    """An adapter converted for one graph."""

    adapter: Adapter
    """Without the modules that no output depends on."""
    arrays: Mapping[str, AnyArray]
    """LoRA input → array with ``rows`` = 1, the scale folded into B."""
    labels: list[str]
    """In the order of the scores; empty for vectors."""
    function_to_apply: FunctionToApply | None
    """What turns scores into answers; None for vectors."""
    max_length: int | None
    """Tokens that texts are cut to; None for images."""

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(module.active_rank for module in self.adapter.modules.values())


@dataclass(frozen=True)
class TryOut:
    """An open graph with a batch to try adapters on, and the base's output for it."""

    session: AdapterSession | DecoderSession
    outputs: Callable[[AdapterKey], AnyArray]
    """Runs the batch with a registered adapter."""
    base: AnyArray
    """The base's output, ``[rows, n]``."""
    precision: str
    """Precision of the graph, for error messages."""

    @classmethod
    def of(cls, bundle: Bundle, session: AdapterSession | DecoderSession | None = None) -> TryOut:
        """Return one that uses a reference batch of ``bundle``; None opens a session on its graph.

        Of texts it is the longest, because an adapter of queries or keys alone changes nothing of a single token.

        Raises:
            InputError: the reference batches or the graph cannot be read.
        """
        batches, base = load_reference(bundle.path / REFERENCE_FILE)
        if session is None:
            session = bundle.decoder_session() if bundle.manifest.decoder is not None else bundle.adapter_session()
        if isinstance(session, DecoderSession):
            longest = max(range(len(batches)), key=lambda index: batches[index]["input_ids"].size)
            return cls._of_text(session, batches[longest], base[longest], bundle.precision)
        opened = session

        def outputs(key: AdapterKey) -> AnyArray:
            return bundle.task.outputs.padding_zeroed(np.stack(opened.run(batches[0], key)), batches[0])

        return cls(session, outputs, base[0], bundle.precision)

    @classmethod
    def _of_text(cls, session: DecoderSession, batch: Arrays, base: AnyArray, precision: str) -> TryOut:
        """Return one that computes the last logits of a text; ``base`` is ``[1, positions, vocabulary]``."""
        tokens = batch["input_ids"][0].tolist()

        def outputs(key: AdapterKey) -> AnyArray:
            return session.logits(tokens, AdapterRef(key), start=-1)

        return cls(session, outputs, base[0, -1:], precision)

    def check(self, name: str, arrays: Mapping[str, AnyArray]) -> None:
        """Run the batch with an adapter.

        Raises:
            AdapterError: with the adapter the outputs are NaN or infinite, or equal the base's.
        """
        key = AdapterKey(name, -next(_attempts))  # unique, so an adapter of the same name keeps serving its rows
        self.session.register(key, lambda: arrays)
        try:
            got = self.outputs(key)
        finally:
            self.session.unload(key)
        if not np.isfinite(got).all():
            raise AdapterError(
                f"With the adapter '{name}' the graph gives NaN or infinity: the adapter is broken, or its update is too "
                f"large for {self.precision}."
            )
        if got.shape == self.base.shape and np.abs(got - self.base).max() <= _ROUNDING * np.abs(self.base).max():
            raise AdapterError(
                f"The adapter '{name}' changes nothing in the outputs: its update has no effect and its head is the base's."
            )


def convert_adapter(
    adapter: Adapter,
    lora_inputs: LoraInputs,
    dtypes: Mapping[str, np.dtype[Any]],
    *,
    name: str,
    task: Task,
    pooling: PoolingEntry | None,
    max_length: int | None,
    try_out: TryOut,
    base_config: Mapping[str, Any],
    label_names: Sequence[str] | None = None,
    allow_base_mismatch: bool = False,
) -> ConvertedAdapter:
    """Return the arrays a graph takes for ``adapter``, after every check that needs no PyTorch.

    Args:
        adapter: as it was read.
        lora_inputs: of the graph.
        dtypes: LoRA input → element type in the graph.
        name: what the adapter is or will be called, for error messages.
        task: of the bundle.
        pooling: of the bundle; None for tasks that do not pool.
        max_length: tokens that the bundle cuts texts to; used where the adapter records no length of its own.
        try_out: runs the graph with the adapter once.
        base_config: configuration of the base, for labels that the adapter does not record.
        label_names: names of its labels, chosen by the user; None takes those that the adapter or the base records.
        allow_base_mismatch: accept an adapter that was made for another base.

    Raises:
        BaseMismatchError: the adapter was made for another base.
        ConfigError: ``label_names`` are more or fewer than the adapter's labels.
        AdapterError: the adapter is for another task or was trained with another pooling, the graph lacks a branch or a
            head that it needs, or with it the outputs are not finite or equal the base's.
    """
    if adapter.task not in (None, task.name):
        raise AdapterError(
            f"{adapter.source} is for {adapter.task}, the bundle for {task.name}: export it into a separate bundle."
        )
    task_of(adapter, task.name)
    adapter = complete_labels(adapter, task, base_config, label_names)
    labels = adapter.labels or []
    used = drop_unused_modules(adapter, task, pooling.pooling if pooling is not None else None)
    check_pooling(adapter, pooling)
    arrays = adapter_arrays(used, lora_inputs, dtypes, allow_base_mismatch=allow_base_mismatch)
    try_out.check(name, arrays)
    scoring = task.outputs.scoring(adapter.problem_type, labels)
    function = scoring.function if scoring is not None else None
    return ConvertedAdapter(used, arrays, labels, function, trained_length(adapter) or max_length)
