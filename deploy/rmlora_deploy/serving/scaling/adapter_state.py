"""Which adapters were loaded and unloaded at run time: the state that all replicas share (pure, no Ray)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rmlora.errors import ConfigError, InputError
from rmlora.storage import read_json, write_json
from rmlora.text_pair import InputForm
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterKey

__all__ = ["AdapterState", "LoadedAdapter", "adapter_file"]


def adapter_file(key: AdapterKey) -> str:
    """Return the name of an adapter's file in the shared directory."""
    return f"{key.generation:032x}.onnx_adapter"


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that was loaded at run time."""

    key: AdapterKey
    """Its name, and a generation that no other adapter has."""
    bundle: str
    graph_digest: str
    """SHA-256 of the graph that it was converted for; it is not served with another graph."""
    labels: tuple[str, ...]
    max_length: int | None
    rank: int | None
    nbytes: int
    created: int
    function_to_apply: str | None = None
    input_form: InputForm | None = None
    no_answer: bool | None = None
    threshold: float | None = None
    sha256: str = ""
    """SHA-256 of its file."""

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.key.name


@dataclass(frozen=True)
class AdapterState:
    """What differs from the bundles on disk. Every change makes a new version."""

    version: int = 0
    loaded: Mapping[str, LoadedAdapter] = field(default_factory=dict)
    """Name → adapter."""
    removed: Mapping[str, str] = field(default_factory=dict)
    """Unloaded adapter of a bundle → SHA-256 of its file, so that a later adapter of the same name is not meant."""

    def load(self, entry: LoadedAdapter) -> AdapterState:
        """Return the state with ``entry`` loaded.

        Raises:
            ConfigError: its name is taken.
        """
        known = self.loaded.get(entry.name)
        if known is not None and known.graph_digest == entry.graph_digest:  # otherwise it belongs to an older release
            raise ConfigError(f"There is a model '{entry.name}' already: unload it first, or choose another name.")
        return replace(self, version=self.version + 1, loaded={**self.loaded, entry.name: entry})

    def unload(self, key: AdapterKey) -> AdapterState:
        """Return the state without the loaded adapter ``key``; the same state if another generation has its name."""
        if key.name not in self.loaded or self.loaded[key.name].key != key:
            return self
        rest = {name: entry for name, entry in self.loaded.items() if name != key.name}
        return replace(self, version=self.version + 1, loaded=rest)

    def remove(self, name: str, digest: str) -> AdapterState:
        """Return the state in which the bundle's adapter ``name``, whose file has the SHA-256 ``digest``, is not served."""
        return replace(self, version=self.version + 1, removed={**self.removed, name: digest})

    @classmethod
    def read(cls, path: Path) -> AdapterState:
        """Read a file that :meth:`write` wrote.

        Raises:
            InputError: it is damaged.
        """
        value = read_json(path, what="Adapter state")
        try:
            entries = [_read_entry(entry) for entry in value["loaded"]]
            return cls(int(value["version"]), {entry.name: entry for entry in entries}, dict(value["removed"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(
                f"{path} does not list loaded adapters: choose another --shared-dir, or delete the file."
            ) from None

    def write(self, path: Path) -> None:
        """Write it, atomically."""
        entries = [asdict(entry) for entry in self.loaded.values()]
        write_json(path, {"version": self.version, "loaded": entries, "removed": dict(self.removed)})


def _read_entry(value: dict[str, object]) -> LoadedAdapter:
    return LoadedAdapter(**{**value, "key": AdapterKey(**value["key"]), "labels": tuple(value["labels"])})  # type: ignore[arg-type]
