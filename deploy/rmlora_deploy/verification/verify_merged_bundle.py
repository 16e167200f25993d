"""Verifying a merged bundle: PyTorch with PEFT's layers, PyTorch merged, and ONNX Runtime on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rmlora.errors import ParityError
from rmlora.inputs import Arrays
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.describe import tool_versions
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.bundles.report import Comparison, LayerMismatch, Tolerance, VerificationReport
from rmlora_deploy.runtime.graph_logits import graph_logits
from rmlora_deploy.runtime.providers import computed_in, provider_label
from rmlora_deploy.verification.compare import accepted, compare, mismatch, widened, within
from rmlora_deploy.verification.evaluation import EvaluationData, keeps_metric, lost_metric, measure
from rmlora_deploy.verification.first_mismatch import first_mismatch
from rmlora_deploy.verification.sample_batches import batch_shapes, make_sample_batches, sample_inputs
from rmlora_deploy.verification.torch_outputs import finite_outputs
from rmlora_deploy.verification.torch_pair import TorchPair, source_of_outputs

__all__ = ["raise_on_mismatch", "stored_inputs_error", "verify_bundle"]


def verify_bundle(
    bundle: Bundle,
    preprocessor: Preprocessor,
    pair: TorchPair | None,
    *,
    evaluation: EvaluationData | None = None,
    samples: Sequence[Any] | None = None,
    provider: str = "cpu",
) -> VerificationReport:
    """Compare a merged bundle with PyTorch; a failed comparison is in the report, not raised.

    Args:
        bundle: to verify.
        preprocessor: of the bundle.
        pair: PyTorch's models; None compares with the outputs stored in the bundle.
        evaluation: labeled data; sample batches are drawn from it and the metric is measured on all of it.
        samples: inputs to draw sample batches from if there is no labeled data, such as those that the graph was calibrated on;
            None takes built-in ones.
        provider: execution provider to run on.

    Raises:
        InputError: PyTorch itself gives NaN, so nothing can be compared with it.
        ProviderError: the provider is not available.
    """
    tolerance, outputs = accepted(bundle.precision, computed_in(provider)), bundle.task.outputs
    known = bundle.manifest.quantization.stored_inputs_error if bundle.manifest.quantization is not None else None
    if pair is None and known is not None:
        tolerance = widened(tolerance, known)
    onnx = graph_logits(bundle.session(provider))
    batches, expected = _expected(bundle, preprocessor, pair, evaluation.inputs if evaluation is not None else samples)
    got = [outputs.padding_zeroed(onnx(batch), batch) for batch in batches]
    result = compare(expected, got, outputs, bundle.scoring(), batches=batches)
    passed = within(result, tolerance)
    optional: dict[str, Any] = {}  # fields that the manifest leaves out if they were not measured
    if pair is not None:
        merged = [pair.merged_output(batch) for batch in batches]
        optional["pytorch_merged"] = compare(expected, merged, outputs, bundle.scoring(), batches=batches)
        if not passed:
            worst = _worst(batches, expected, got)
            optional["first_mismatch"] = _first_mismatch(bundle, pair, worst, tolerance, provider)
    if evaluation is not None:
        scores = measure(evaluation, preprocessor, onnx=onnx, pytorch=pair.output if pair is not None else None)
        optional["evaluation"] = scores
        passed &= keeps_metric(scores, tolerance)
    return VerificationReport(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tools=tool_versions(),
        provider=provider_label(provider),
        tolerance=tolerance,
        against=source_of_outputs(pair),
        shapes=batch_shapes(batches),
        onnx=result,
        passed=passed,
        **optional,
    )


def stored_inputs_error(bundle: Bundle) -> Comparison:
    """Return how far the graph is from PyTorch on the inputs stored in the bundle.

    They are built in, and can be so unlike the data that an int8 graph was calibrated on (drawn images beside photographs)
    that a good graph is far off on them: no sign of damage later if it was so from the start.
    """
    batches, expected = load_reference(bundle.path / REFERENCE_FILE)
    onnx, outputs = graph_logits(bundle.session()), bundle.task.outputs
    got = [outputs.padding_zeroed(onnx(batch), batch) for batch in batches]
    return compare(expected, got, outputs, bundle.scoring(), batches=batches)


def _expected(
    bundle: Bundle, preprocessor: Preprocessor, pair: TorchPair | None, samples: Sequence[Any] | None
) -> tuple[list[Arrays], list[np.ndarray]]:
    """Return sample batches and PyTorch's outputs for them: stored in the bundle, or computed by ``pair``."""
    if pair is None:
        return load_reference(bundle.path / REFERENCE_FILE)
    batches = make_sample_batches(preprocessor, sample_inputs(preprocessor, samples, bundle.input_forms))
    return batches, finite_outputs(pair.adapted, batches, pair.outputs, pair.pooling, what="the adapter")


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
    """Return a sentence on which layer differs first, or why that is not known."""
    if "first_mismatch" not in report.model_fields_set:
        return " Verify where PyTorch is installed, without --reference-only, to learn which layer differs first."
    layer = report.first_mismatch
    if layer is None:
        return " The first layer that differs could not be identified."
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
    """Return the batch for which the graph's outputs differ most from PyTorch's."""
    errors = [np.nan_to_num(np.abs(a - b), nan=np.inf).max() for a, b in zip(expected, got, strict=True)]
    return batches[int(np.argmax(errors))]
