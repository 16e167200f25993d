"""Cases that are one more of a kind: ``make test`` leaves them out, ``make architectures`` runs them."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["rarely"]


def rarely(*values: Any, id: str | None = None) -> Any:
    """Return a case for ``parametrize`` that is only tried with ``--all-architectures``."""
    return pytest.param(*values, id=id, marks=pytest.mark.rare)
