"""Which pooling an embedding bundle gets: what the user says, else the files beside the adapters or the base, else a default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, ConfigError
from rmlora.pooling import Pooling, PoolingMode, read_pooling
from rmlora.tasks import Task
from rmlora_deploy.bundles.manifest import PoolingEntry

__all__ = ["check_pooling", "choose_pooling"]


def choose_pooling(
    task: Task, base: Path, adapters: Mapping[str, Adapter], processor: Any, *, mode: PoolingMode | None,
    normalize: bool | None,
) -> PoolingEntry | None:  # fmt: skip
    """Return the pooling and who says so; None for tasks that do not pool.

    Files of sentence-transformers beside an adapter go before those beside the base: it was trained with them.

    Args:
        task: only tasks that answer with vectors pool.
        base: directory of the base.
        adapters: name → adapter.
        processor: the tokenizer, which must not put padding where the first token is read.
        mode: the user's choice; None leaves it to the files.
        normalize: the same for the normalization.

    Raises:
        ConfigError: a choice was made for another task, or cannot go with the tokenizer.
        AdapterError: two adapters were trained with different ones.
        InputError: the files are damaged, or ask for what cannot be exported.
    """
    if not task.outputs.pools:
        if mode is not None or normalize is not None:
            raise ConfigError(f"--pooling and --normalize are for feature-extraction, and the task is {task.name}.")
        return None
    entry = _entry(Pooling(mode), "chosen") if mode is not None else _found(base, adapters)
    if normalize is not None:
        entry = PoolingEntry(mode=entry.mode, normalize=normalize, source="chosen")
    if entry.mode == "cls" and getattr(processor, "padding_side", "right") == "left":
        raise ConfigError(
            "Pooling by the first token (cls) cannot go with a tokenizer that puts padding before a text: choose --pooling "
            "mean or last."
        )
    return entry


def _found(base: Path, adapters: Mapping[str, Adapter]) -> PoolingEntry:
    own = {name: found for name, adapter in adapters.items() if (found := read_pooling(Path(adapter.source)))}
    for name, pooling in own.items():
        first = next(iter(own))
        if pooling != own[first]:
            raise AdapterError(
                f"'{first}' was trained with the pooling {own[first]}, and '{name}' with {pooling}: export them into bundles "
                "of their own, or choose with --pooling."
            )
    if own:
        return _entry(next(iter(own.values())), "adapter")
    found = read_pooling(base)
    return _entry(found, "base") if found is not None else _entry(Pooling(), "default")


def _entry(pooling: Pooling, source: Literal["chosen", "adapter", "base", "default"]) -> PoolingEntry:
    return PoolingEntry(mode=pooling.mode, normalize=pooling.normalize, source=source)


def check_pooling(adapter: Adapter, recorded: PoolingEntry | None) -> None:
    """Raise :class:`AdapterError` where ``adapter`` was trained with another pooling than the one in a manifest.

    One that the user chose at export is right for every adapter.
    """
    if recorded is None or recorded.source == "chosen":
        return
    own, bundles = read_pooling(Path(adapter.source)), recorded.pooling
    if own not in (None, bundles):
        raise AdapterError(
            f"{adapter.source} was trained with the pooling {own}, and the graph pools by {bundles}: give it a bundle of its "
            "own."
        )
