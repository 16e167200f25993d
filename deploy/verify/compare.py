"""Comparing two sets of logits, and how far each precision may depart (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["TOLERANCES", "Comparison", "Tolerance", "compare"]


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same model."""

    relative_error: float
    """Largest difference of a logit, relative to the largest logit."""
    agreement: float
    """Share of rows whose first choice must be the same."""


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(1e-4, 1.0),  # the same sums in another order
    "fp16": Tolerance(2e-2, 0.98),  # 11 bits a number, errors adding up over the layers
    "int8": Tolerance(2.5e-1, 0.90),  # 8 bits a factor; the metric on real data is the judge that counts
}
"""Precision → what is accepted on the inputs of the verification."""


@dataclass(frozen=True)
class Comparison:
    """How far one set of logits lies from another, over all rows."""

    max_abs_error: float
    mean_abs_error: float
    max_relative_error: float
    """``max_abs_error`` over the largest expected logit."""
    argmax_agreement: float
    rows: int

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the difference is acceptable; NaN never is."""
        return self.max_relative_error <= tolerance.relative_error and self.argmax_agreement >= tolerance.agreement


def compare(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> Comparison:
    """Compare logits batch by batch.

    Args:
        expected: arrays ``[rows, labels]``.
        got: arrays of the same shapes.

    Raises:
        ValueError: shapes differ.
    """
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"logits of shape {b.shape} where {a.shape} is expected")
    first = np.concatenate([np.asarray(a, np.float64) for a in expected])
    second = np.concatenate([np.asarray(b, np.float64) for b in got])
    if not np.isfinite(second).all():
        return Comparison(float("inf"), float("inf"), float("inf"), 0.0, len(first))
    difference = np.abs(second - first)
    scale = float(np.abs(first).max()) or 1.0
    return Comparison(
        max_abs_error=float(difference.max()),
        mean_abs_error=float(difference.mean()),
        max_relative_error=float(difference.max()) / scale,
        argmax_agreement=float((first.argmax(-1) == second.argmax(-1)).mean()),
        rows=len(first),
    )
