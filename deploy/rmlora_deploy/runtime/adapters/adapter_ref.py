"""How a caller says which adapter each row of a batch uses, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rmlora.errors import ConfigError
from rmlora.wording import counted

__all__ = ["AdapterChoice", "AdapterKey", "AdapterName", "AdapterRef", "resolve_choices"]


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """Identifies an adapter whose name may be reused: another adapter loaded later as ``name`` has another generation."""

    name: str
    generation: int

    def __str__(self) -> str:
        return self.name


AdapterName: TypeAlias = str | AdapterKey
"""What an adapter is registered under: a plain string, or an :class:`AdapterKey`. Messages show ``str()`` of it."""


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """Refers to a registered adapter, to be applied at a given strength.

    Two rows share one entry in the adapter cache exactly if their references are equal.
    """

    key: AdapterName
    """What the adapter was registered under."""
    strength: float = 1.0
    """Factor on the low-rank update. The adapter's head is not scaled."""

    def __hash__(self) -> int:  # several times per row of a batch; the generated one also hashes the strength
        return hash(self.key)

    @property
    def name(self) -> str:
        """The adapter's name as people read it."""
        return str(self.key)


AdapterChoice: TypeAlias = AdapterName | AdapterRef | Mapping[str, float] | None
"""One row's adapter: a name or key, ``{name: strength}``, an :class:`AdapterRef`, or None for the base model alone."""


def resolve_choices(adapters: AdapterChoice | Sequence[AdapterChoice], rows: int) -> list[AdapterRef | None]:
    """Return an adapter reference for each of ``rows`` rows; None stands for the base model.

    Args:
        adapters: one choice for all rows, or a sequence with one choice per row.
        rows: number of rows in the batch.

    Raises:
        ConfigError: the number of choices is not the number of rows, or a choice has the wrong form.
    """
    if adapters is None or isinstance(adapters, (str, AdapterKey, AdapterRef, Mapping)):
        return [_resolve(adapters)] * rows
    if len(adapters) != rows:
        raise ConfigError(
            f"{counted(rows, 'row')} {'needs' if rows == 1 else 'need'} {counted(rows, 'adapter')}, not {len(adapters)}: name one for each row, or one for all."
        )
    return [_resolve(choice) for choice in adapters]


def _resolve(choice: AdapterChoice) -> AdapterRef | None:
    if choice is None or isinstance(choice, AdapterRef):
        return choice
    if isinstance(choice, (str, AdapterKey)):
        return AdapterRef(choice)
    if len(choice) != 1:
        raise ConfigError(
            f"A row takes one adapter, not {sorted(choice)}: add adapters up beforehand with  rmlora-deploy mix."
        )
    ((name, strength),) = choice.items()
    if not isinstance(strength, (int, float)) or strength != strength or abs(strength) == float("inf"):
        raise ConfigError(f"The strength of '{name}' must be a finite number, not {strength!r}.")
    return AdapterRef(name, float(strength))
