"""What a caller says of a batch: the adapter of every row, and its strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rmlora.errors import ConfigError

__all__ = ["AdapterChoice", "AdapterRef", "resolve_choices"]

AdapterChoice: TypeAlias = str | Mapping[str, float] | None
"""A name, None for the base alone, or ``{name: strength}``: the update times that number; the head is not scaled."""


@dataclass(frozen=True)
class AdapterRef:
    """One row's adapter and strength."""

    name: str
    strength: float = 1.0


def resolve_choices(adapters: AdapterChoice | Sequence[AdapterChoice], rows: int) -> list[AdapterRef | None]:
    """Return the choice for each of ``rows`` rows.

    Args:
        adapters: one choice for all rows, or one for each.
        rows: rows of the batch.

    Raises:
        ConfigError: the number of choices is not that of the rows, or a choice is of no known form.
    """
    if adapters is None or isinstance(adapters, (str, Mapping)):
        return [_chosen(adapters)] * rows
    if len(adapters) != rows:
        raise ConfigError(
            f"{rows} rows need {rows} adapters, not {len(adapters)}: name one for each row, or one for all."
        )
    return [_chosen(item) for item in adapters]


def _chosen(item: AdapterChoice) -> AdapterRef | None:
    if item is None:
        return None
    if isinstance(item, str):
        return AdapterRef(item)
    if len(item) != 1:
        raise ConfigError(
            f"A row takes one adapter, not {sorted(item)}: add adapters up beforehand with  rmlora-deploy mix."
        )
    ((name, strength),) = item.items()
    if not isinstance(strength, (int, float)) or strength != strength or abs(strength) == float("inf"):
        raise ConfigError(f"The strength of '{name}' must be a finite number, not {strength!r}.")
    return AdapterRef(name, float(strength))
