"""Texts that are read one by one, and never as pairs (no torch)."""

from __future__ import annotations

from typing import Any, ClassVar

from rmlora.inputs import TextInputs

__all__ = ["SingleTextInputs"]


class SingleTextInputs(TextInputs):
    """Single texts: what a model embeds or continues."""

    takes_pairs = False
    pair_columns: ClassVar[tuple[tuple[str, str], ...]] = ()

    def locate(self, value: Any, source: str) -> Any:
        """Return ``value``: the cell contains the text itself."""
        return value
