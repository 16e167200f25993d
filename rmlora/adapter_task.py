"""Which task an adapter is for, and which of its modules matter there."""

from __future__ import annotations

from dataclasses import replace

from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, ConfigError
from rmlora.tasks import TASKS, Task, get_task

__all__ = ["drop_unused_modules", "task_of"]


def task_of(adapter: Adapter, name: str | None = None) -> Task:
    """Return the task of ``adapter``: the one called ``name``, else the one it records.

    Raises:
        ConfigError: there is no such task, or none is recorded.
        AdapterError: the adapter was made for another kind of output.
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
    """Return ``adapter`` without the modules no output depends on: PEFT's ``all-linear`` adapts some of these.

    Raises:
        AdapterError: nothing is left.
    """
    modules = {path: module for path, module in adapter.modules.items() if task.outputs.depends_on(path)}
    if not modules:
        raise AdapterError(f"{adapter.source} changes nothing on which an answer for {task.name} depends.")
    return replace(adapter, modules=modules)
