"""Which adapters were loaded and unloaded while the application runs: the table all replicas follow (pure, no Ray)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rmlora.errors import ConfigError, InputError
from rmlora.storage import read_json, write_json

__all__ = ["AdapterState", "LoadedAdapter"]


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that was loaded at run time."""

    name: str
    generation: str
    """Tells it from every other one, of the same name too; its file in the shared directory is called so."""
    bundle: str
    graph: str
    """SHA-256 of the graph that it was converted for: it is served with no other."""
    labels: tuple[str, ...]
    max_length: int | None
    rank: int | None
    nbytes: int
    created: int

    @property
    def file(self) -> str:
        """Name of its file in the shared directory."""
        return f"{self.generation}.onnx_adapter"


@dataclass(frozen=True)
class AdapterState:
    """What differs from the bundles as they lie on disk; every change makes the next version."""

    version: int = 0
    loaded: Mapping[str, LoadedAdapter] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)
    """Adapter of a bundle that was unloaded → SHA-256 of its file, so that another one of that name is not meant."""

    def load(self, entry: LoadedAdapter) -> AdapterState:
        """Return the table with ``entry``.

        Raises:
            ConfigError: its name is taken.
        """
        known = self.loaded.get(entry.name)
        if known is not None and known.graph == entry.graph:  # one of another graph is of an older release
            raise ConfigError(f"There is a model '{entry.name}' already: unload it first, or choose another name.")
        return replace(self, version=self.version + 1, loaded={**self.loaded, entry.name: entry})

    def unload(self, name: str, generation: str) -> AdapterState:
        """Return the table without the loaded adapter ``name``, if it is still of that generation."""
        if name not in self.loaded or self.loaded[name].generation != generation:
            return self
        rest = {key: entry for key, entry in self.loaded.items() if key != name}
        return replace(self, version=self.version + 1, loaded=rest)

    def remove(self, name: str, digest: str) -> AdapterState:
        """Return the table in which the bundle's adapter ``name`` is served no longer."""
        return replace(self, version=self.version + 1, removed={**self.removed, name: digest})

    @classmethod
    def read(cls, path: Path) -> AdapterState:
        """Read what :meth:`write` wrote.

        Raises:
            InputError: it is damaged.
        """
        value = read_json(path, what="Table of loaded adapters")
        try:
            entries = [LoadedAdapter(**{**entry, "labels": tuple(entry["labels"])}) for entry in value["loaded"]]
            return cls(int(value["version"]), {entry.name: entry for entry in entries}, dict(value["removed"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{path} is no table of loaded adapters: give another --shared-dir, or delete the file."
            ) from None

    def write(self, path: Path) -> None:
        """Write it, atomically."""
        entries = [asdict(entry) for entry in self.loaded.values()]
        write_json(path, {"version": self.version, "loaded": entries, "removed": dict(self.removed)})
