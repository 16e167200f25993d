"""Which pooling an embedding bundle gets: what the user says, else the files beside the adapters or the base, else a default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, ConfigError
from rmlora.pooling import Pooling, PoolingMode, read_pooling
from rmlora.tasks import Task

__all__ = ["check_pooling", "choose_pooling", "describe_pooling"]


def choose_pooling(
    task: Task, base: Path, adapters: Mapping[str, Adapter], processor: Any, *, mode: PoolingMode | None,
    normalize: bool | None,
) -> tuple[Pooling, str] | None:  # fmt: skip
    """Return the pooling and who says so (``chosen``, ``adapter``, ``base`` or ``default``); None for other tasks.

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
    if task.answer != "vector":
        if mode is not None or normalize is not None:
            raise ConfigError(f"--pooling and --normalize are for feature-extraction, and the task is {task.name}.")
        return None
    if mode is not None and normalize is not None:
        pooling, source = Pooling(mode, normalize), "chosen"
    elif mode is not None:
        pooling, source = Pooling(mode), "chosen"
    else:
        pooling, source = _found(base, adapters)
        if normalize is not None:
            pooling, source = Pooling(pooling.mode, normalize), "chosen"
    if pooling.mode == "cls" and getattr(processor, "padding_side", "right") == "left":
        raise ConfigError(
            "Pooling by the first token (cls) cannot go with a tokenizer that puts padding before a text: choose --pooling "
            "mean or last."
        )
    return pooling, source


def _found(base: Path, adapters: Mapping[str, Adapter]) -> tuple[Pooling, str]:
    own = {name: found for name, adapter in adapters.items() if (found := read_pooling(Path(adapter.source)))}
    for name, pooling in own.items():
        first = next(iter(own))
        if pooling != own[first]:
            raise AdapterError(
                f"'{first}' was trained with the pooling {own[first]}, and '{name}' with {pooling}: export them into bundles "
                "of their own, or choose with --pooling."
            )
    if own:
        return next(iter(own.values())), "adapter"
    found = read_pooling(base)
    return (found, "base") if found is not None else (Pooling(), "default")


def describe_pooling(chosen: tuple[Pooling, str] | None) -> dict[str, Any]:
    """Return the manifest's part about the pooling; empty for tasks that do not pool."""
    return {"pooling": {**asdict(chosen[0]), "source": chosen[1]}} if chosen is not None else {}


def check_pooling(adapter: Adapter, recorded: Mapping[str, Any] | None) -> None:
    """Raise :class:`AdapterError` where ``adapter`` was trained with another pooling than the one in a manifest.

    One that the user chose at export is right for every adapter.
    """
    if recorded is None or recorded["source"] == "chosen":
        return
    own, bundles = read_pooling(Path(adapter.source)), Pooling(recorded["mode"], recorded["normalize"])
    if own not in (None, bundles):
        raise AdapterError(
            f"{adapter.source} was trained with the pooling {own}, and the graph pools by {bundles}: give it a bundle of its "
            "own."
        )
