"""From an adapter to the arrays a graph takes: the one way in, with all its checks, for export, command line and server."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.adapter import Adapter
from rmlora.adapter_task import drop_unused_modules, task_of
from rmlora.errors import AdapterError
from rmlora.tasks import Task
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.choose_pooling import check_pooling
from rmlora_deploy.bundles.manifest import PoolingEntry
from rmlora_deploy.bundles.processor import trained_length
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.runtime import AdapterKey, AdapterSession
from rmlora_deploy.runtime.outputs import Arrays

__all__ = ["ConvertedAdapter", "TryOut", "convert_adapter"]

AnyArray = npt.NDArray[Any]

_ROUNDING = 1e-6
"""Difference from the base's outputs, relative to the largest, that rounding alone can make."""

_attempts = itertools.count(1)


@dataclass(frozen=True)
class ConvertedAdapter:
    """An adapter as one graph takes it."""

    adapter: Adapter
    """Without the modules no output depends on."""
    arrays: Mapping[str, AnyArray]
    """LoRA input → array with ``rows`` = 1, the scale folded into B."""
    labels: list[str]
    """In the order of its scores; empty for vectors."""
    max_length: int | None
    """Tokens that texts are cut to."""

    @property
    def rank(self) -> int:
        """The largest of its modules'."""
        return max(module.active_rank for module in self.adapter.modules.values())


@dataclass(frozen=True)
class TryOut:
    """A batch to try adapters on, and what the base gives for it."""

    session: AdapterSession
    batch: Arrays
    base: AnyArray
    """``[rows, n]``."""
    precision: str
    """Of the graph, for errors."""

    @classmethod
    def of(cls, bundle: Bundle, session: AdapterSession) -> TryOut:
        """Return one on the first reference batch of ``bundle``; errors as :func:`load_reference`."""
        batches, base = load_reference(bundle.path / REFERENCE_FILE)
        return cls(session, batches[0], base[0], bundle.precision)

    def check(self, name: str, arrays: Mapping[str, AnyArray]) -> None:
        """Run the batch with an adapter.

        Raises:
            AdapterError: the graph gives NaN or infinity with it, or just what the base gives.
        """
        key = AdapterKey(name, -next(_attempts))  # rows of an adapter of the same name are not affected
        self.session.register(key, lambda: arrays)
        try:
            got = np.stack(self.session.run(self.batch, key))
        finally:
            self.session.unload(key)
        if not np.isfinite(got).all():
            raise AdapterError(
                f"With the adapter '{name}' the graph gives NaN or infinity: the adapter is broken, or too large for "
                f"{self.precision}."
            )
        if got.shape == self.base.shape and np.abs(got - self.base).max() <= _ROUNDING * np.abs(self.base).max():
            raise AdapterError(
                f"The adapter '{name}' changes nothing in the answers: its update and its head are the base's."
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
    allow_base_mismatch: bool = False,
) -> ConvertedAdapter:
    """Return what a graph takes for ``adapter``, after every check there is without PyTorch.

    Args:
        adapter: as it was read.
        lora_inputs: what the graph takes.
        dtypes: LoRA input → its type in the graph.
        name: what the adapter is or will be called, for errors.
        task: of the bundle.
        pooling: of the bundle; None where nothing is pooled.
        max_length: tokens that the bundle cuts texts to; the adapter's own training goes before it.
        try_out: runs the graph with the adapter once.
        allow_base_mismatch: accept an adapter that was made for another base.

    Raises:
        BaseMismatchError: the adapter was made for another base.
        AdapterError: it is for another task or was trained with another pooling, the graph has no place for one of its
            modules or heads, or its outputs are not finite or the base's own.
    """
    if adapter.task not in (None, task.name):
        raise AdapterError(
            f"{adapter.source} is for {adapter.task}, the bundle for {task.name}: give it one of its own."
        )
    task_of(adapter, task.name)
    labels, used = task.outputs.labels_of(adapter), drop_unused_modules(adapter, task)
    check_pooling(adapter, pooling)
    arrays = adapter_arrays(used, lora_inputs, dtypes, allow_base_mismatch=allow_base_mismatch)
    try_out.check(name, arrays)
    return ConvertedAdapter(used, arrays, labels, trained_length(adapter) or max_length)
