"""The adapters that a session knows by name, and how each is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from rmlora.errors import ConfigError, InputError, some_of
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName

__all__ = ["AdapterLoaders", "Loader", "check_capacity"]

Loader = Callable[[], Mapping[str, npt.NDArray[Any]]]
"""Reads an adapter: returns LoRA input → array ``[1, …]``."""


def check_capacity(capacity: int) -> None:
    """Raise :class:`ConfigError` unless an adapter fits into memory for ``capacity`` of them."""
    if capacity < 1:
        raise ConfigError(
            f"The adapter cache must hold at least one adapter, not {capacity}: raise --max-active-adapters."
        )


class AdapterLoaders:
    """Name → loader. Not safe to use from several threads: its owner has a lock."""

    def __init__(self) -> None:
        self._loaders: dict[AdapterName, Loader] = {}

    def add(self, name: AdapterName, loader: Loader) -> None:
        """Make an adapter known as ``name``.

        Raises:
            ConfigError: the name is taken or empty.
        """
        if not str(name):
            raise ConfigError("An adapter needs a name.")
        if name in self._loaders:
            raise ConfigError(f"There is an adapter '{name}' already: unload it first, or choose another name.")
        self._loaders[name] = loader

    def remove(self, name: AdapterName) -> None:
        """Forget an adapter; raise :class:`InputError` if it is not known."""
        self.loader_of(name)
        del self._loaders[name]

    def get(self, name: AdapterName) -> Loader | None:
        """Return how an adapter is read; None if it is not known."""
        return self._loaders.get(name)

    def loader_of(self, name: AdapterName) -> Loader:
        """Return how an adapter is read; raise :class:`InputError` if it is not known."""
        if (loader := self._loaders.get(name)) is not None:
            return loader
        known = [str(key) for key in self.names]
        raise InputError(
            f"There is no adapter '{name}': " + (f"known are {some_of(known)}." if known else "none is registered.")
        )

    @property
    def names(self) -> list[AdapterName]:
        """Every name, sorted."""
        return sorted(self._loaders, key=str)
