"""What a trained adapter reaches on one split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Evaluation"]


@dataclass(frozen=True)
class Evaluation:
    """What the kept checkpoint reaches on one split."""

    scores: Mapping[str, float]
    """Name → figure, the most telling first; ``loss`` is one of them."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON-ready: figures of every label, or some of the generated answers."""
    warnings: tuple[str, ...] = ()
    """Sentences about what speaks against trusting the adapter."""
