"""Which registered adapters could not be read when they were last needed, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rmlora.errors import InputError
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName

__all__ = ["Failures", "UnreadableAdapterError"]


class UnreadableAdapterError(InputError):
    """A registered adapter cannot be read: its file is missing, damaged, or not the one that was registered.

    Args:
        adapter: what it is registered under.
        reason: says what is wrong, and names the file.
    """

    def __init__(self, adapter: AdapterName, reason: str) -> None:
        super().__init__(reason)
        self.adapter = adapter


class Failures:
    """Adapter → why it could not be read. Changes are made under the lock of the adapter cache; reading needs none."""

    def __init__(self) -> None:
        self._reasons: dict[AdapterName, str] = {}
        self.on_change: Callable[[AdapterName, str | None], None] = lambda name, reason: None
        """Called, without the lock, when an adapter cannot be read any more, and with None when it can be read again."""

    def set(self, name: AdapterName, reason: str | None) -> bool:
        """Record a reason, or None for none, and return True if it was another one."""
        before = self._reasons.get(name)
        if reason is None:
            if before is not None:
                self._reasons = {key: value for key, value in self._reasons.items() if key != name}
        elif before != reason:
            self._reasons = {**self._reasons, name: reason}
        return before != reason

    def forget(self, name: AdapterName) -> None:
        """Drop what is known of an adapter that is no longer registered."""
        self.set(name, None)

    @property
    def reasons(self) -> Mapping[AdapterName, str]:
        """A snapshot, the one that failed last is the last."""
        return self._reasons
