"""Comparing two sets of outputs, and how far each precision may differ from PyTorch (no torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rmlora.errors import InputError
from rmlora.inputs import Arrays
from rmlora.outputs import Outputs
from rmlora.scoring import Scoring
from rmlora_deploy.bundles.report import Comparison, Tolerance

__all__ = ["TEXT_TOLERANCES", "TOLERANCES", "accepted", "compare", "mismatch", "widened", "within"]


def _tolerance(relative: float, rms: float, agreement: float, cosine: float, metric: float) -> Tolerance:
    return Tolerance(relative_error=relative, rms_error=rms, agreement=agreement, cosine=cosine, metric_loss=metric)


TOLERANCES: dict[str, Tolerance] = {
    # The same float32 sums in another order: 1e-6 on real models; a wrong weight gives more than 1e-3.
    "fp32": _tolerance(1e-4, 1e-4, 1.0, 0.99999999, 0.0),
    # 11 bits per number, errors add up over the layers: 6e-4 on MiniLM.
    "fp16": _tolerance(2e-2, 1e-2, 0.98, 0.9999, 0.002),
    # 8 bits per number: 9e-3 on MiniLM.
    "bf16": _tolerance(8e-2, 4e-2, 0.95, 0.999, 0.005),
    # 8 bits per factor. The errors of activations have long tails: single logits of a good model move far, so the root mean
    # square and the metric decide.
    "int8": _tolerance(1.0, 1.5e-1, 0.90, 0.95, 0.01),
    # 4 bits per weight: for models large enough to tolerate it.
    "int4": _tolerance(1.5, 3.5e-1, 0.80, 0.85, 0.03),
}
"""Precision → accepted differences."""


def _of_text(
    relative: float, rms: float, agreement: float, perplexity: float, metric: float, absolute: float | None = None
) -> Tolerance:
    return Tolerance(
        relative_error=relative, rms_error=rms, agreement=agreement, cosine=0.0, metric_loss=metric, absolute_error=absolute,
        perplexity=perplexity,
    )  # fmt: skip


TEXT_TOLERANCES: dict[str, Tolerance] = {
    # Logits of language models reach 30 and more; the same sums in another order differ by 1e-4 on SmolLM2.
    "fp32": _of_text(1e-5, 1e-5, 0.99, 1.001, 0.0, 3e-4),
    "fp16": _of_text(2e-2, 1e-2, 0.97, 1.01, 0.01),
    # Weights in 8 bits, and activations too while they are multiplied: perplexity decides.
    "int8": _of_text(1.0, 1.5e-1, 0.85, 1.05, 0.02),
    # Weights in 4 bits lose much in small models; the report says how much, and only a broken graph is refused.
    "int4": _of_text(1.5, 1.0, 0.40, 1.60, 1.0),
}
"""Precision → accepted differences of a language model's logits, of its perplexity, and of the metric of its answers."""


def accepted(precision: str, computed_in: str | None = None) -> Tolerance:
    """Return what may differ in a graph of one precision that a provider computes in another.

    Args:
        precision: of the graph's weights.
        computed_in: precision that the provider was told to compute in; None if it takes the graph's.
    """
    one, other = TOLERANCES[precision], TOLERANCES[computed_in or precision]
    return _tolerance(
        max(one.relative_error, other.relative_error),
        max(one.rms_error, other.rms_error),
        min(one.agreement, other.agreement),
        min(one.cosine, other.cosine),
        max(one.metric_loss, other.metric_loss),
    )


def widened(tolerance: Tolerance, known: Comparison) -> Tolerance:
    """Return a tolerance that accepts a difference that is known, and a quarter more for other processors."""
    agreement, cosine = known.argmax_agreement, known.min_cosine
    return tolerance.model_copy(
        update={
            "relative_error": max(tolerance.relative_error, 1.25 * known.max_relative_error),
            "rms_error": max(tolerance.rms_error, 1.25 * known.rms_relative_error),
            "agreement": tolerance.agreement if agreement is None else min(tolerance.agreement, agreement),
            "cosine": tolerance.cosine if cosine is None else min(tolerance.cosine, 1 - 1.25 * (1 - cosine)),
        }
    )


def compare(
    expected: Sequence[np.ndarray],
    got: Sequence[np.ndarray],
    outputs: Outputs,
    scoring: Scoring | None = None,
    *,
    batches: Sequence[Arrays] | None = None,
) -> Comparison:
    """Compare outputs batch by batch.

    Args:
        expected: arrays ``[rows, labels]``, ``[rows, width]`` or ``[rows, tokens, labels]``, all finite.
        got: arrays of the same shapes.
        outputs: kind of output: scores or vectors.
        scoring: what scores mean; None judges by their number.
        batches: inputs of the batches, which say what of an output stands for padding; None if nothing does.

    Raises:
        InputError: shapes differ, or there are not as many arrays.
    """
    if len(expected) != len(got):
        raise InputError(f"There are {len(expected)} batches of expected outputs for {len(got)}: export again.")
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            raise InputError(
                f"The graph gives outputs of the shape {list(b.shape)} where {list(a.shape)} is expected: it, or the stored "
                "outputs, are of another model; export again."
            )
    first, second = (_joined(arrays, outputs, batches) for arrays in (expected, got))
    finite = np.isfinite(second)
    difference = np.abs(np.where(finite, second, first) - first)
    scale = float(np.sqrt((first**2).mean())) or 1.0
    return Comparison(
        max_abs_error=float(difference.max()),
        mean_abs_error=float(difference.sum() / max(1, finite.sum())),
        max_relative_error=float(difference.max()) / (float(np.abs(first).max()) or 1.0),
        rms_relative_error=float(np.sqrt((difference**2).mean())) / scale,
        not_finite=int((~finite).sum()),
        rows=len(first),
        **{"argmax_agreement": None, "min_cosine": None, **outputs.agreement(first, second, scoring)},
    )


def _joined(arrays: Sequence[np.ndarray], outputs: Outputs, batches: Sequence[Arrays] | None) -> np.ndarray:
    """Return what counts of all batches, one after the other."""
    if batches is not None:
        arrays = [outputs.without_padding(array, batch) for array, batch in zip(arrays, batches, strict=True)]
    return np.concatenate([np.asarray(array, np.float64) for array in arrays])


def within(measured: Comparison, tolerance: Tolerance) -> bool:
    """Return True if the differences are within the tolerance; NaN never is."""
    return mismatch(measured, tolerance) is None


def mismatch(measured: Comparison, tolerance: Tolerance) -> str | None:
    """Return how a comparison exceeds a tolerance, as the rest of a sentence about the graph; None if it does not."""
    cosine = measured.min_cosine
    if measured.not_finite:
        what = "logits" if cosine is None else "components"
        return f"gives {measured.not_finite} {what} that are NaN or infinite"
    if _close(measured, tolerance) and _alike(measured, tolerance):
        return None
    largest = "logit" if cosine is None else "component"
    how = (
        f"differs from PyTorch by {measured.max_relative_error:.1e} of the largest {largest} (allowed "
        f"{tolerance.relative_error:.2g})"
    )
    if cosine is not None:
        return f"{how}, and the least cosine of an input's two vectors is {cosine:.6f} (at least {tolerance.cosine:g})"
    how = f"{how}, by {measured.rms_relative_error:.1e} in the root mean square (allowed {tolerance.rms_error:.2g})"
    if measured.argmax_agreement is None:
        return how
    return f"{how}, and agrees on {measured.argmax_agreement:.1%} of the choices (at least {tolerance.agreement:.0%})"


def _close(measured: Comparison, tolerance: Tolerance) -> bool:
    """Return True if the largest difference is accepted: in relation to the largest output, or by itself."""
    small = tolerance.absolute_error is not None and measured.max_abs_error <= tolerance.absolute_error
    return small or measured.max_relative_error <= tolerance.relative_error


def _alike(measured: Comparison, tolerance: Tolerance) -> bool:
    """Return True if vectors point the same way, or scores are close overall and rank the same label first."""
    if measured.min_cosine is not None:
        return measured.min_cosine >= tolerance.cosine
    agreed = measured.argmax_agreement if measured.argmax_agreement is not None else 1.0  # numbers have no choice
    # Rows are whole: with few of them a share is allowed one row more than its exact number.
    other, allowed = (1 - agreed) * measured.rows, math.ceil((1 - tolerance.agreement) * measured.rows - 1e-9)
    return measured.rms_relative_error <= tolerance.rms_error and other <= allowed + 1e-9
