"""Verifying a merged bundle: PyTorch with the adapter applied, PyTorch merged, and ONNX Runtime, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rmlora.errors import ParityError
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.bundles.report import LayerMismatch, Tolerance, VerificationReport
from rmlora_deploy.runtime.outputs import Arrays, graph_logits
from rmlora_deploy.verification.compare import TOLERANCES, compare, mismatch, within
from rmlora_deploy.verification.evaluation import EvaluationData, keeps_metric, lost_metric, measure
from rmlora_deploy.verification.first_mismatch import first_mismatch
from rmlora_deploy.verification.sample_batches import make_sample_batches, sample_inputs
from rmlora_deploy.verification.torch_outputs import finite_outputs
from rmlora_deploy.verification.torch_pair import TorchPair

__all__ = ["raise_on_mismatch", "verify_bundle"]


def verify_bundle(
    bundle: Bundle,
    preprocessor: Preprocessor,
    pair: TorchPair | None,
    *,
    evaluation: EvaluationData | None = None,
    provider: str = "cpu",
) -> VerificationReport:
    """Compare and return the report; a failed comparison is in it, not raised (see :func:`raise_on_mismatch`).

    Args:
        bundle: what to verify.
        preprocessor: of the bundle.
        pair: PyTorch's models, or None to compare with the outputs stored in the bundle.
        evaluation: labeled data; sample batches are drawn from it and the metric is measured on all of it.
        provider: execution provider to run on.

    Raises:
        InputError: PyTorch itself answers with NaN, so there is nothing to compare with.
        ProviderError: the provider is absent.
    """
    tolerance, outputs = TOLERANCES[bundle.precision], bundle.task.outputs
    onnx = graph_logits(bundle.session(provider))
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "provider": provider,
        "tolerance": tolerance,
    }
    if pair is None:
        batches, expected = load_reference(bundle.path / REFERENCE_FILE)
        report["against"] = "stored outputs of PyTorch and PEFT"
    else:
        batches = make_sample_batches(
            preprocessor, sample_inputs(preprocessor, evaluation.inputs if evaluation else None)
        )
        expected = finite_outputs(pair.adapted, batches, outputs, pair.pooling, what="the adapter")
        report["against"] = "PyTorch and PEFT"
        report["pytorch_merged"] = compare(expected, [pair.merged_output(batch) for batch in batches], outputs)
    got = [onnx(batch) for batch in batches]
    report["onnx"] = result = compare(expected, got, outputs)
    report["shapes"] = [list(next(iter(batch.values())).shape) for batch in batches]
    passed = within(result, tolerance)
    if not passed and pair is not None:
        report["first_mismatch"] = _first_mismatch(bundle, pair, _worst(batches, expected, got), tolerance, provider)
    if evaluation is not None:
        models: dict[str, Callable[[Arrays], np.ndarray]] = {"onnx": onnx}
        if pair is not None:
            models["pytorch"] = pair.output
        report["evaluation"] = scores = measure(evaluation, preprocessor, models)
        passed &= keeps_metric(scores, tolerance)
    return VerificationReport(**report, passed=passed)


def raise_on_mismatch(report: VerificationReport, precision: str) -> None:
    """Raise :class:`ParityError` if the report says that the bundle differs from PyTorch."""
    if report.passed or report.onnx is None:
        return
    what = mismatch(report.onnx, report.tolerance)
    if what is not None:
        raise ParityError(f"The {precision} graph {what}.{_where(report)}")
    if report.evaluation is not None:
        raise ParityError(lost_metric(report.evaluation, precision, report.tolerance))


def _where(report: VerificationReport) -> str:
    """Say which layer differs first, or why that is not known."""
    if "first_mismatch" not in report.model_fields_set:
        return " Verify where PyTorch is installed, without --reference-only, to learn which layer differs first."
    layer = report.first_mismatch
    if layer is None:
        return " No single layer could be named."
    size = "is not finite" if layer.relative_error is None else f"by {layer.relative_error:.1e}"
    return f" The first layer that differs is '{layer.module}' ({size})."


def _first_mismatch(
    bundle: Bundle, pair: TorchPair, batch: Arrays, tolerance: Tolerance, provider: str
) -> LayerMismatch | None:
    return first_mismatch(
        bundle.model_path, bundle.manifest.layers, pair.merged, batch, tolerance=tolerance.relative_error,
        provider=provider,
    )  # fmt: skip


def _worst(batches: Sequence[Arrays], expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> Arrays:
    """Return the batch on which the graph lies furthest from PyTorch."""
    errors = [np.nan_to_num(np.abs(a - b), nan=np.inf).max() for a, b in zip(expected, got, strict=True)]
    return batches[int(np.argmax(errors))]
