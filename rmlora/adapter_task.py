"""Determining the task of an adapter, and the modules that the task uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, ConfigError
from rmlora.labels import check_label_count
from rmlora.outputs import problem_type_of
from rmlora.pooling import Pooling
from rmlora.tasks import TASKS, Task, get_task

__all__ = ["complete_labels", "drop_unused_modules", "task_of"]


def task_of(adapter: Adapter, name: str | None = None) -> Task:
    """Return the task called ``name`` or, if that is None, the task that ``adapter`` records.

    Raises:
        ConfigError: there is no such task, or none is recorded.
        AdapterError: the adapter was made for another kind of outputs.
    """
    recorded = adapter.task
    if recorded is not None and recorded not in TASKS:
        raise _not_exported(adapter, recorded, f"the tasks are {', '.join(TASKS)}")
    chosen = name or recorded
    if chosen is None:
        raise ConfigError(f"{adapter.source} does not say which task it is for: pass --task.")
    task = get_task(chosen)
    if recorded is not None and TASKS[recorded].outputs.kind != task.outputs.kind:
        raise AdapterError(f"{adapter.source} is for {recorded} and cannot be used for {task.name}.")
    if task.not_exported is not None:
        raise _not_exported(adapter, task.name, task.not_exported)
    task.outputs.check_adapter(adapter, task.name)
    return task


def _not_exported(adapter: Adapter, task: str, reason: str) -> AdapterError:
    return AdapterError(f"{adapter.source} is an adapter for {task}, which is not exported: {reason}.")


def complete_labels(
    adapter: Adapter, task: Task, config: Mapping[str, Any], labels: Sequence[str] | None = None
) -> Adapter:
    """Return ``adapter`` with a label name for each of its outputs, and with what kind of answer it gives.

    Args:
        adapter: as it was read.
        task: of the adapter.
        config: of its base (``config.json``).
        labels: names that the user chose; None takes those that the adapter records, else the base's.

    Raises:
        ConfigError: there are more or fewer names than outputs, or the task has no labels.
        AdapterError: nothing says how many labels there are.
    """
    fixed = task.outputs.fixed_labels
    if labels is not None and fixed is not None and tuple(labels) == fixed:
        labels = None
    if labels is not None and (fixed is not None or not task.outputs.has_labels):
        raise ConfigError(f"--labels names outputs, but {task.name} has none to name: leave it out.")
    if not task.outputs.has_labels:
        return adapter
    if labels is None:
        names = task.outputs.labels_of(adapter, config)
    else:
        names, outputs = list(labels), task.outputs.count(adapter, config)
        check_label_count(names, outputs if outputs is not None else len(names), source=adapter.source)
    kind = problem_type_of(adapter, config)
    return replace(adapter, metadata={**adapter.metadata, "labels": names, "problem_type": kind})


def drop_unused_modules(adapter: Adapter, task: Task, pooling: Pooling | None = None) -> Adapter:
    """Return ``adapter`` without modules that no output depends on; PEFT's ``all-linear`` adapts some of these too.

    Args:
        adapter: any.
        task: that the outputs are for.
        pooling: how token vectors become one; None for tasks that do not pool.

    Raises:
        AdapterError: no module is left.
    """
    modules = {path: module for path, module in adapter.modules.items() if task.outputs.depends_on(path, pooling)}
    if not modules:
        raise AdapterError(f"{adapter.source} changes no module that the outputs of {task.name} depend on.")
    return replace(adapter, modules=modules)
