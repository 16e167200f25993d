"""Which task, labels and modules of an adapter count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, ConfigError
from rmlora.tasks import TASKS, Task, get_task

if TYPE_CHECKING:
    pass

__all__ = ["adapter_labels", "answer_depends_on", "drop_unused_modules", "task_of"]


def task_of(adapter: Adapter, name: str | None = None) -> Task:
    """Return the task of ``adapter``: the one called ``name``, else the one that it is recorded to be for.

    Raises:
        ConfigError: there is no such task, or none is recorded.
        AdapterError: it is for scores and the task is for vectors, or the other way round.
    """
    chosen = name or adapter.task
    if chosen is None:
        raise ConfigError(f"{adapter.source} does not say which task it is for: pass --task.")
    task = get_task(chosen)
    recorded = TASKS.get(adapter.task or "")
    if recorded is not None and recorded.answer != task.answer:
        raise AdapterError(f"{adapter.source} is for {recorded.name} and cannot be used for {task.name}.")
    if task.answer == "vector" and (head := next(_head_weights(adapter), None)):
        raise AdapterError(
            f"{adapter.source} brings '{head}', as adapters for classification do: it cannot be used for {task.name}."
        )
    return task


def drop_unused_modules(adapter: Adapter, task: Task) -> Adapter:
    """Return ``adapter`` without the modules on which no answer for ``task`` depends, as PEFT's ``all-linear`` includes some."""
    modules = {path: module for path, module in adapter.modules.items() if answer_depends_on(path, task)}
    if not modules:
        raise AdapterError(f"{adapter.source} changes nothing on which an answer for {task.name} depends.")
    return replace(adapter, modules=modules)


def answer_depends_on(module: str, task: Task) -> bool:
    """Whether the answer depends on ``module``: a vector is made of the encoder's tokens, whatever its pooler does."""
    return task.answer == "scores" or module.split(".")[0] != "pooler"


def _head_weights(adapter: Adapter) -> Iterator[str]:
    """Yield the weights of classifier heads that ``adapter`` brings, the last first."""
    for name in reversed(list(adapter.modules_to_save)):
        if name.endswith(".weight") and name.rsplit(".", 2)[-2] in ("classifier", "score", "out_proj"):
            yield name


def adapter_labels(adapter: Adapter, task: Task) -> list[str]:
    """Return the adapter's label names, or ``LABEL_i`` for as many outputs as its head has; none for vectors.

    Raises:
        AdapterError: no labels and no head are stored.
    """
    if task.answer == "vector":
        return []
    if adapter.labels:
        return adapter.labels
    for name in _head_weights(adapter):
        return [f"LABEL_{index}" for index in range(adapter.modules_to_save[name].shape[0])]
    raise AdapterError(
        f"{adapter.source} stores neither label names nor a classifier head: it is no classification adapter."
    )
