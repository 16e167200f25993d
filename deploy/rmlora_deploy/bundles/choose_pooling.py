"""Choosing how an embedding bundle pools: as the user says, else as the adapters' or the base's files say, else by mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, ConfigError
from rmlora.pooling import Pooling, PoolingMode, check_padding, read_pooling
from rmlora.tasks import Task
from rmlora_deploy.bundles.manifest import PoolingEntry

__all__ = ["check_pooling", "choose_pooling"]


def choose_pooling(
    task: Task, base: Path, adapters: Mapping[str, Adapter], processor: Any, *, mode: PoolingMode | None,
    normalize: bool | None,
) -> PoolingEntry | None:  # fmt: skip
    """Return the pooling and where the choice came from; None for tasks that do not pool.

    An adapter was trained with the pooling that its package records, so this wins over the base's.

    Args:
        task: only tasks whose output is a vector pool.
        base: directory of the base.
        adapters: name → adapter.
        processor: the tokenizer; pooling by the first token needs one that pads on the right.
        mode: the user's choice; None takes the files'.
        normalize: the user's choice; None takes the files'.

    Raises:
        ConfigError: the user chose a pooling for a task that has none, or one that the tokenizer's padding rules out.
        AdapterError: two adapters were trained with different poolings.
        InputError: the files are damaged or ask for a pooling that cannot be exported.
    """
    if not task.outputs.pools:
        if mode is not None or normalize is not None:
            raise ConfigError(f"--pooling and --normalize are for feature-extraction, and the task is {task.name}.")
        return None
    entry = _entry(Pooling(mode), "chosen") if mode is not None else _found(base, adapters)
    if normalize is not None:
        entry = PoolingEntry(mode=entry.mode, normalize=normalize, source="chosen")
    check_padding(entry.pooling, processor)
    return entry


def _found(base: Path, adapters: Mapping[str, Adapter]) -> PoolingEntry:
    own = {name: found for name, adapter in adapters.items() if (found := _of_adapter(adapter))}
    for name, pooling in own.items():
        first = next(iter(own))
        if pooling != own[first]:
            raise AdapterError(
                f"'{first}' was trained with the pooling {own[first]} and '{name}' with {pooling}: export them into separate "
                "bundles, or choose one with --pooling."
            )
    if own:
        return _entry(next(iter(own.values())), "adapter")
    found = read_pooling(base)
    return _entry(found, "base") if found is not None else _entry(Pooling(), "default")


def _of_adapter(adapter: Adapter) -> Pooling | None:
    """Return what the package records itself, else what its sentence-transformers files say; None if it has neither."""
    return adapter.pooling or read_pooling(Path(adapter.source))


def _entry(pooling: Pooling, source: Literal["chosen", "adapter", "base", "default"]) -> PoolingEntry:
    return PoolingEntry(mode=pooling.mode, normalize=pooling.normalize, source=source)


def check_pooling(adapter: Adapter, recorded: PoolingEntry | None) -> None:
    """Raise :class:`AdapterError` if ``adapter`` was trained with another pooling than the manifest records.

    A pooling that the user chose at export holds for every adapter.
    """
    if recorded is None or recorded.source == "chosen":
        return
    own, required = _of_adapter(adapter), recorded.pooling
    if own not in (None, required):
        raise AdapterError(
            f"{adapter.source} was trained with the pooling {own}, and the graph pools by {required}: export it into a "
            "separate bundle."
        )
