"""Determining the task of an adapter, and the modules that the task uses."""

from __future__ import annotations

from dataclasses import replace

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, ConfigError
from rmlora.tasks import TASKS, Task, get_task

__all__ = ["drop_unused_modules", "task_of"]


def task_of(adapter: Adapter, name: str | None = None) -> Task:
    """Return the task called ``name`` or, if that is None, the task that ``adapter`` records.

    Raises:
        ConfigError: there is no such task, or none is recorded.
        AdapterError: the adapter was made for another kind of outputs.
    """
    chosen = name or adapter.task
    if chosen is None:
        raise ConfigError(f"{adapter.source} does not say which task it is for: pass --task.")
    task = get_task(chosen)
    recorded = TASKS.get(adapter.task or "")
    if recorded is not None and recorded.outputs.kind != task.outputs.kind:
        raise AdapterError(f"{adapter.source} is for {recorded.name} and cannot be used for {task.name}.")
    task.outputs.check_adapter(adapter, task.name)
    return task


def drop_unused_modules(adapter: Adapter, task: Task) -> Adapter:
    """Return ``adapter`` without modules that no output depends on; PEFT's ``all-linear`` adapts some of these too.

    Raises:
        AdapterError: no module is left.
    """
    modules = {path: module for path, module in adapter.modules.items() if task.outputs.depends_on(path)}
    if not modules:
        raise AdapterError(f"{adapter.source} changes no module that the outputs of {task.name} depend on.")
    return replace(adapter, modules=modules)
