"""Takes over what was changed in the bundles of a running server, without a request being refused for it.

Only adapters can be taken over: those that ``rmlora-deploy adapter add`` and ``adapter remove`` added, removed or exchanged.
Another graph or tokenizer needs another process. If anything is wrong with a bundle, it is served as before.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rmlora.errors import ConfigError, RMLoRAError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.meaning import adapter_meaning, fixed_parts
from rmlora_deploy.bundles.opening import opening
from rmlora_deploy.serving.model_runner import ModelRunner
from rmlora_deploy.serving.registry import Registry

__all__ = ["reload_bundle", "reloaded_by_signal"]

_log = logging.getLogger("rmlora.serve")


@contextmanager
def reloaded_by_signal(registry: Registry) -> Iterator[None]:
    """Reload the bundles of ``registry`` whenever this process gets SIGHUP, while the block runs; from the main thread only.

    Reloading happens in another thread, and requests are answered meanwhile.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None:  # Windows
        yield
        return
    asked = threading.Event()
    threading.Thread(target=_work, args=(registry, asked), name="reload", daemon=True).start()
    before = signal.signal(hangup, lambda *_: asked.set())
    try:
        yield
    finally:
        signal.signal(hangup, before)


def _work(registry: Registry, asked: threading.Event) -> None:
    while asked.wait():
        asked.clear()
        for runner in list(registry.runners.values()):
            try:
                _log.info("%s reloaded: %s", runner.name, reload_bundle(registry, runner))
            except RMLoRAError as error:
                _log.error("%s is served as before: %s", runner.name, error)
            except Exception as error:  # noqa: BLE001 - the next signal may find it mended
                _log.exception("%s is served as before: %s", runner.name, type(error).__name__)


def reload_bundle(registry: Registry, runner: ModelRunner) -> str:
    """Serve the adapters that the bundle on disk has now, and return what changed in words.

    Rows that wait or are computed keep the adapter that they were sent for. An adapter that was unloaded over HTTP stays
    unloaded unless the bundle has another one of its name.

    Raises:
        InputError: the bundle is incomplete or altered, or somebody is writing to it.
        ConfigError: it has another graph or tokenizer, or a new adapter has a name that is taken.
    """
    old = runner.bundle
    new = _read(old)
    before, now = ({name: adapter_meaning(entry) for name, entry in one.adapters.items()} for one in (old, new))
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    added = {name: new.adapters[name] for name in sorted(changed) if name in new.adapters}
    registry.exchange(runner, changed, added, new)
    parts = [f"{word} {', '.join(names)}" for word, names in _words(changed, old, new) if names]
    return "; ".join(parts) or "nothing has changed"


def _read(old: Bundle) -> Bundle:
    with opening(old.path) as new:
        before = fixed_parts(old.manifest)
        for part, value in fixed_parts(new.manifest).items():
            if value != before[part]:
                raise ConfigError(
                    f"'{part}' of {old.path} has changed, and only adapters can be exchanged: restart the server."
                )
    return new


def _words(changed: set[str], old: Bundle, new: Bundle) -> Iterator[tuple[str, list[str]]]:
    names = sorted(changed)
    yield "added", [name for name in names if name not in old.adapters]
    yield "removed", [name for name in names if name not in new.adapters]
    yield "exchanged", [name for name in names if name in old.adapters and name in new.adapters]
