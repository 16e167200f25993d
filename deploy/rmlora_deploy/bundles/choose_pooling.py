"""Choosing how an embedding bundle pools: as the user says, else as the adapters' or the base's files say, else as is usual."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, ConfigError, is_installed
from rmlora.pooling import Pooling, PoolingMode, check_padding, read_pooling
from rmlora.tasks import Task
from rmlora_deploy.bundles.manifest import PoolingEntry

__all__ = ["check_pooling", "choose_pooling"]


def choose_pooling(
    task: Task, base: Path, adapters: Mapping[str, Adapter], processor: Any, *, mode: PoolingMode | None,
    normalize: bool | None, trust_remote_code: bool = False,
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
        trust_remote_code: run code that comes with the base, if it has to be loaded to find out how it pools.

    Raises:
        ConfigError: the user chose a pooling for a task that has none, or one that task, base or the tokenizer's padding rules
            out.
        DependencyError: an image model has to be asked how it pools, and torch is not installed.
        AdapterError: two adapters were trained with different poolings.
        InputError: the files are damaged or ask for a pooling that cannot be exported.
    """
    if not task.outputs.pools:
        if mode is not None or normalize is not None:
            raise ConfigError(f"--pooling and --normalize are for embeddings, and the task is {task.name}.")
        return None
    entry = _entry(Pooling(mode), "chosen") if mode is not None else _found(base, adapters)
    modes = task.outputs.pooling_modes
    if entry is not None and entry.mode not in modes:
        raise ConfigError(
            f"The pooling {entry.mode} is not for {task.name}: choose --pooling {', '.join(modes[:-1])} or {modes[-1]}."
        )
    if "pooler" in modes and (entry is None or (entry.source == "chosen" and is_installed("torch"))):
        own = _of_model(task, base, adapters, processor, mode, trust_remote_code=trust_remote_code)
        entry = entry or _entry(Pooling(own), "default")
    entry = entry or _entry(Pooling(), "default")
    if normalize is not None:
        entry = PoolingEntry(mode=entry.mode, normalize=normalize, source="chosen")
    check_padding(entry.pooling, processor)
    return entry


def _of_model(
    task: Task, base: Path, adapters: Mapping[str, Adapter], processor: Any, mode: PoolingMode | None, *,
    trust_remote_code: bool,
) -> PoolingMode:  # fmt: skip
    """Return how the base itself pools; raise :class:`ConfigError` if it does not have the user's choice."""
    from rmlora.model_pooling import model_pooling
    from rmlora.torch_models import load_task_model

    saved = set.intersection(*(set(adapter.modules_to_save) for adapter in adapters.values()))
    loaded = load_task_model(base, task, (), trust_remote_code=trust_remote_code)
    return model_pooling(loaded, base, task, processor, mode=mode, saved=saved)


def _found(base: Path, adapters: Mapping[str, Adapter]) -> PoolingEntry | None:
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
    return _entry(found, "base") if found is not None else None


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
