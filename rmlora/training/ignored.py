"""The mark of what is not learned, as torch's losses and transformers' trainer know it (no torch)."""

from __future__ import annotations

__all__ = ["IGNORED"]

IGNORED = -100
"""Label of a token whose prediction is not learned."""
