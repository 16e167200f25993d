"""The adapters of a decoder in memory: those used last, and what the rows of a batch are fed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.passes.pack_factors import PackedFactors, packed_arrays
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName, AdapterRef
from rmlora_deploy.runtime.adapters.array_layout import ArrayCheck
from rmlora_deploy.runtime.adapters.loaders import AdapterLoaders, Loader, check_capacity

__all__ = ["DecoderAdapters"]

AnyArray = npt.NDArray[Any]
Arrays = dict[str, AnyArray]


class DecoderAdapters:
    """Adapters by name, the most recently used of them in memory. Safe to use from any number of threads.

    Args:
        lora_inputs: of the graph.
        defaults: LoRA input → the base model's values, ``[1, …]``.
        capacity: adapters kept in memory.
        packed: the LoRA inputs that the opened graph takes in place of several.

    Raises:
        ConfigError: the capacity is less than one.
    """

    def __init__(
        self,
        lora_inputs: LoraInputs,
        defaults: Mapping[str, AnyArray],
        capacity: int,
        packed: Sequence[PackedFactors] = (),
    ) -> None:
        check_capacity(capacity)
        self._capacity, self._packed = capacity, packed
        self._defaults = packed_arrays(packed, defaults)
        """LoRA input of the opened graph → the base model's values."""
        self._check = ArrayCheck(lora_inputs, defaults)
        self._loaders = AdapterLoaders()
        self._cached: OrderedDict[AdapterName, Arrays] = OrderedDict()
        """The most recently used is last."""
        self._lock = threading.Lock()

    @property
    def names(self) -> list[AdapterName]:
        """Every registered name, sorted."""
        with self._lock:
            return self._loaders.names

    def register(self, name: AdapterName, loader: Loader) -> None:
        """Make an adapter known as ``name``; it is read when a row first needs it.

        Raises:
            ConfigError: the name is taken or empty.
        """
        with self._lock:
            self._loaders.add(name, loader)

    def unload(self, name: AdapterName) -> None:
        """Forget an adapter; batches that use it finish with it.

        Raises:
            InputError: it is not registered.
        """
        with self._lock:
            self._loaders.remove(name)
            self._cached.pop(name, None)

    def loader(self, name: AdapterName) -> Loader | None:
        """Return how an adapter is read; None if it is not registered. Another adapter of the same name has another loader."""
        with self._lock:
            return self._loaders.get(name)

    def stored(self, name: AdapterName) -> Mapping[str, AnyArray]:
        """Return LoRA input of the graph on disk → ``[1, …]`` for one adapter, read anew.

        Raises:
            InputError: the adapter is not registered or cannot be read.
        """
        with self._lock:
            loader = self._loaders.loader_of(name)
        return self._check(name, loader())

    def arrays(self, ref: AdapterRef | None) -> Arrays:
        """Return LoRA input → ``[1, …]`` for one adapter; nothing for the base model.

        Raises:
            InputError: the adapter is not registered or cannot be read.
        """
        if ref is None:
            return {}
        found = self._read(ref.key)
        if ref.strength == 1.0:
            return found
        strength = np.float32(ref.strength)
        return {
            name: (array.astype(np.float32) * strength).astype(array.dtype) if name.endswith(".lora_B") else array
            for name, array in found.items()
        }

    def stacked(self, refs: Sequence[AdapterRef | None]) -> Arrays:
        """Return LoRA input → array ``[rows, …]`` for the rows of a batch; nothing if all are the base model's.

        Smaller ranks are padded with zeros, and so are the rows of the base model. Rows with the same adapter get a copy each:
        one array for all of them would make one larger product, which rounds otherwise, and a row's text would depend on the
        other rows of its batch.

        Raises:
            InputError: an adapter is not registered or cannot be read.
        """
        chosen = {ref: self.arrays(ref) for ref in refs}
        if len(refs) == 1 or set(chosen) == {None}:
            return chosen[refs[0]]
        return {name: self._stack(name, [chosen[ref] for ref in refs]) for name in self._defaults}

    def _stack(self, name: str, rows: Sequence[Arrays]) -> AnyArray:
        default = self._defaults[name]
        parts = [arrays.get(name, default)[0] for arrays in rows]
        axis = 1 if name.endswith(".lora_A") else 0
        rank = max(part.shape[axis] for part in parts)
        shape = (parts[0].shape[0], rank) if axis == 1 else (rank, parts[0].shape[1])
        stacked = np.zeros((len(rows), *shape), default.dtype)
        for target, part in zip(stacked, parts, strict=True):
            target[: part.shape[0], : part.shape[1]] = part
        return stacked

    def _read(self, name: AdapterName) -> Arrays:
        with self._lock:
            loader = self._loaders.loader_of(name)
            if name in self._cached:
                self._cached.move_to_end(name)
                return self._cached[name]
        arrays = packed_arrays(
            self._packed, self._check(name, loader())
        )  # without the lock, so that other threads can go on
        with self._lock:
            if self._loaders.get(name) is loader:
                self._cached[name] = arrays
                while len(self._cached) > self._capacity:
                    self._cached.popitem(last=False)
        return arrays
