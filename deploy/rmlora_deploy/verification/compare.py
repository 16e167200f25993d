"""Comparing two sets of logits or vectors, and how far each precision may depart (no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["TOLERANCES", "Comparison", "Tolerance", "compare", "mismatch"]


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same model."""

    relative_error: float
    """Largest difference of a logit, relative to the largest logit."""
    rms_error: float
    """Root mean square of the differences, relative to that of the logits."""
    agreement: float
    """Share of rows whose first choice must be the same; the rest is rounded up to whole rows."""
    cosine: float
    """Of vectors, which have no first choice, in the place of the rms error and the agreement: the least that the cosine of a
    row's two may be."""
    metric_loss: float
    """How much of the metric may be lost on evaluation data; one example more or less is never a loss."""

    def accepts_metric(self, expected: float, got: float, examples: int) -> bool:
        """Whether a metric that fell from ``expected`` to ``got`` over ``examples`` is acceptable."""
        return (expected - got) * examples <= max(1.0, self.metric_loss * examples) + 1e-9


TOLERANCES: dict[str, Tolerance] = {
    # The same float32 sums in another order: 1e-6 on real models, and a wrong weight shows above 1e-3.
    "fp32": Tolerance(1e-4, 1e-4, 1.0, 0.99999999, 0.0),
    # 11 bits a number, errors adding up over the layers: 6e-4 on MiniLM.
    "fp16": Tolerance(2e-2, 1e-2, 0.98, 0.9999, 0.002),
    # 8 bits a factor. The errors of activations have long tails: single logits of a good model move far, so the root mean
    # square and the metric are the judges.
    "int8": Tolerance(1.0, 1.5e-1, 0.90, 0.95, 0.01),
    # 4 bits a weight: for models large enough to bear it.
    "int4": Tolerance(1.5, 3.5e-1, 0.80, 0.85, 0.03),
}
"""Precision → what is accepted."""


@dataclass(frozen=True)
class Comparison:
    """How far one set of logits, or of vectors, lies from another, over all rows; errors are over the finite numbers."""

    max_abs_error: float
    mean_abs_error: float
    max_relative_error: float
    """``max_abs_error`` over the largest expected logit."""
    rms_relative_error: float
    """Root mean square of the differences over that of the expected logits."""
    argmax_agreement: float | None
    """Share of rows with the same first choice; a row with a NaN or an infinity never has it. None for vectors."""
    not_finite: int
    """Numbers that are NaN or infinite."""
    rows: int
    min_cosine: float | None = None
    """The least cosine of a row's two vectors; None for logits."""

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the difference is acceptable; NaN never is."""
        return (
            self.not_finite == 0
            and self.max_relative_error <= tolerance.relative_error
            and _alike(asdict(self), asdict(tolerance))
        )


def compare(expected: Sequence[np.ndarray], got: Sequence[np.ndarray], *, vectors: bool = False) -> Comparison:
    """Compare logits, or vectors, batch by batch.

    Args:
        expected: arrays ``[rows, labels]`` or ``[rows, width]``, all finite.
        got: arrays of the same shapes.
        vectors: they are directions and not choices: compare by cosine.

    Raises:
        ValueError: shapes differ.
    """
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"logits of shape {b.shape} where {a.shape} is expected")
    first = np.concatenate([np.asarray(a, np.float64) for a in expected])
    second = np.concatenate([np.asarray(b, np.float64) for b in got])
    finite = np.isfinite(second)
    difference = np.abs(np.where(finite, second, first) - first)
    same = (first.argmax(-1) == second.argmax(-1)) & finite.all(-1)
    scale = float(np.sqrt((first**2).mean())) or 1.0
    return Comparison(
        max_abs_error=float(difference.max()),
        mean_abs_error=float(difference.sum() / max(1, finite.sum())),
        max_relative_error=float(difference.max()) / (float(np.abs(first).max()) or 1.0),
        rms_relative_error=float(np.sqrt((difference**2).mean())) / scale,
        argmax_agreement=None if vectors else float(same.mean()),
        not_finite=int((~finite).sum()),
        rows=len(first),
        min_cosine=float(_cosines(first, np.where(finite, second, 0.0)).min()) if vectors else None,
    )


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosine of every row's two vectors; 0 where one has no length."""
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.asarray((first * second).sum(-1) / np.where(lengths > 0, lengths, 1.0))


def _agree(share: float, rows: int, wanted: float) -> bool:
    """Whether few enough rows have another choice; a few rows cannot tell a share of them to a part of a row."""
    return (1 - share) * rows <= math.ceil((1 - wanted) * rows - 1e-9) + 1e-9


def _alike(measured: Mapping[str, Any], limit: Mapping[str, float]) -> bool:
    """Whether vectors point the same way, or logits are close on the whole and choose the same."""
    if measured.get("min_cosine") is not None:
        return bool(measured["min_cosine"] >= limit["cosine"])
    return measured["rms_relative_error"] <= limit["rms_error"] and _agree(
        measured["argmax_agreement"], measured["rows"], limit["agreement"]
    )


def mismatch(measured: Mapping[str, Any], limit: Mapping[str, float]) -> str | None:
    """Say how a comparison exceeds a tolerance, both as dictionaries of a report; None where it does not."""
    cosine = measured.get("min_cosine")
    if measured["not_finite"]:
        what = "logits" if cosine is None else "components"
        return f"gives {measured['not_finite']} {what} that are NaN or infinite"
    if measured["max_relative_error"] <= limit["relative_error"] and _alike(measured, limit):
        return None
    if cosine is not None:
        return (
            f"differs from PyTorch by {measured['max_relative_error']:.1e} of the largest component (allowed "
            f"{limit['relative_error']:.2g}), and the least cosine of a text's two vectors is {cosine:.6f} (at least "
            f"{limit['cosine']:g})"
        )
    return (
        f"differs from PyTorch by {measured['max_relative_error']:.1e} of the largest logit (allowed "
        f"{limit['relative_error']:.2g}), by {measured['rms_relative_error']:.1e} in the root mean square (allowed "
        f"{limit['rms_error']:.2g}), and agrees on {measured['argmax_agreement']:.1%} of the choices (at least "
        f"{limit['agreement']:.0%})"
    )
