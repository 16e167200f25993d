"""Verifying a bundle with branches: the base without an adapter, each adapter alone, and all mixed in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rmlora.errors import InputError, ParityError
from rmlora.inputs import Arrays
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.describe import tool_versions
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.bundles.report import (
    AdapterReport,
    BaseReport,
    Comparison,
    MixedReport,
    Tolerance,
    VerificationReport,
)
from rmlora_deploy.runtime import AdapterSession
from rmlora_deploy.runtime.graph_logits import graph_logits
from rmlora_deploy.runtime.providers import computed_in, provider_label
from rmlora_deploy.verification.compare import accepted, compare, mismatch, within
from rmlora_deploy.verification.evaluation import EvaluationData, keeps_metric, lost_metric, measure
from rmlora_deploy.verification.sample_batches import batch_shapes
from rmlora_deploy.verification.torch_outputs import finite_outputs
from rmlora_deploy.verification.torch_pair import TorchPair, source_of_outputs

__all__ = ["raise_on_branch_mismatch", "verify_branches"]

OutputBatches = list[np.ndarray]
"""An array ``[rows, n]`` for each batch."""


def verify_branches(
    bundle: Bundle,
    pair_of: Callable[[str], TorchPair] | None,
    *,
    evaluations: Mapping[str, EvaluationData] | None = None,
    provider: str = "cpu",
) -> tuple[VerificationReport, dict[str, OutputBatches]]:
    """Compare a bundle with branches with PyTorch; a failed comparison is in the report, not raised.

    Args:
        bundle: to verify.
        pair_of: loads PyTorch's models of an adapter; None compares with the outputs stored in the bundle.
        evaluations: adapter → labeled data to measure the metric on.
        provider: execution provider to run on.

    Returns:
        the report, and PyTorch's outputs by adapter, batch by batch.

    Raises:
        InputError: PyTorch itself gives NaN, or there are no outputs to compare with.
        ProviderError: the provider is not available.
    """
    session, tolerance = bundle.adapter_session(provider), accepted(bundle.precision, computed_in(provider))
    batches, base_outputs = load_reference(bundle.path / REFERENCE_FILE)
    reports: dict[str, AdapterReport] = {}
    expected: dict[str, OutputBatches] = {}
    for name in bundle.adapters:
        pair = pair_of(name) if pair_of is not None else None
        known = _expected(bundle, name, batches, pair)
        if known is not None:
            expected[name] = known
            data = (evaluations or {}).get(name)
            reports[name] = _verify_alone(bundle, session, name, batches, known, pair, data, tolerance)
    unverified = [name for name in bundle.adapters if name not in reports]
    if unverified and not reports:
        raise InputError(
            f"{bundle.path} stores no outputs of PyTorch for '{unverified[0]}', which was added without PyTorch: verify where "
            "PyTorch is installed, without --reference-only."
        )
    base = _verify_base(bundle, batches, base_outputs, provider, tolerance)
    mixed = _verify_mixed(bundle, session, batches, expected, tolerance) if expected else None
    parts: list[BaseReport | AdapterReport | MixedReport | None] = [base, *reports.values(), mixed]
    report = VerificationReport(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tools=tool_versions(),
        provider=provider_label(provider),
        tolerance=tolerance,
        against=source_of_outputs(pair_of),
        shapes=batch_shapes(batches),
        base=base,
        adapters=reports,
        mixed=mixed,
        unverified=unverified,
        passed=all(part is None or part.passed for part in parts),
    )
    return report, expected


def _expected(bundle: Bundle, name: str, batches: Sequence[Arrays], pair: TorchPair | None) -> OutputBatches | None:
    """Return PyTorch's outputs with an adapter: computed by ``pair``, or stored in the bundle; None if neither exists."""
    if pair is not None:
        return finite_outputs(pair.adapted, batches, pair.outputs, pair.pooling, what=f"'{name}'")
    stored = bundle.adapter(name).reference
    return load_reference(bundle.file(stored))[1] if stored is not None else None


def _verify_base(
    bundle: Bundle, batches: Sequence[Arrays], expected: OutputBatches, provider: str, tolerance: Tolerance
) -> BaseReport:
    """Compare the graph without an adapter with the base's graph before branches were inserted."""
    outputs = graph_logits(bundle.session(provider))
    got = [outputs(batch) for batch in batches]
    got = [bundle.task.outputs.padding_zeroed(output, batch) for output, batch in zip(got, batches, strict=True)]
    result = compare(expected, got, bundle.task.outputs, bundle.scoring(), batches=batches)
    return BaseReport(
        **dict(result),
        bit_equal=all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True)),
        passed=within(result, tolerance),
    )


def _verify_alone(
    bundle: Bundle, session: AdapterSession, name: str, batches: Sequence[Arrays], expected: OutputBatches,
    pair: TorchPair | None, data: EvaluationData | None, tolerance: Tolerance,
) -> AdapterReport:  # fmt: skip
    """Compare one adapter, alone in every batch, with PyTorch."""
    kind = (bundle.task.outputs, bundle.scoring(name))
    got = [np.stack(session.run(batch, name)) for batch in batches]
    result = compare(expected, got, *kind, batches=batches)
    passed = within(result, tolerance)
    optional: dict[str, Any] = {}  # fields that the manifest leaves out if they were not measured
    if pair is not None:
        merged = [pair.merged_output(batch) for batch in batches]
        optional["pytorch_merged"] = compare(expected, merged, *kind, batches=batches)
    if data is not None:
        optional["evaluation"] = scores = measure(
            data, bundle.preprocessor(name), onnx=lambda batch: np.stack(session.run(batch, name)),
            pytorch=pair.output if pair is not None else None,
        )  # fmt: skip
        passed &= keeps_metric(scores, tolerance)
    return AdapterReport(onnx=result, passed=passed, **optional)


def raise_on_branch_mismatch(report: VerificationReport, precision: str) -> None:
    """Raise :class:`ParityError` if the report says that the bundle differs from PyTorch."""
    if report.passed:
        return
    limit = report.tolerance
    if report.base is not None and (what := mismatch(report.base, limit)):
        raise ParityError(f"Without an adapter the {precision} graph does not compute what the base does: it {what}.")
    for name, row in (report.adapters or {}).items():
        if what := mismatch(row.onnx, limit):
            raise ParityError(f"With the adapter '{name}' the {precision} graph {what}.")
        if not row.passed and row.evaluation is not None:
            raise ParityError(f"With the adapter '{name}': {lost_metric(row.evaluation, precision, limit)}")
    if report.mixed is not None:
        raise ParityError(f"In a batch that mixes the adapters the {precision} graph {mismatch(report.mixed, limit)}.")


def _verify_mixed(
    bundle: Bundle, session: AdapterSession, batches: Sequence[Arrays], expected: Mapping[str, OutputBatches],
    tolerance: Tolerance,
) -> MixedReport:  # fmt: skip
    """Compare batches whose rows use all adapters in turn; repeat until every adapter has had a row."""
    names, start = list(expected), 0
    want: dict[str, OutputBatches] = {name: [] for name in names}
    got: dict[str, OutputBatches] = {name: [] for name in names}
    parts: dict[str, list[Arrays]] = {name: [] for name in names}
    while start < len(names) or not start:
        for number, batch in enumerate(batches):
            rows = len(next(iter(batch.values())))
            chosen = [names[(start + row) % len(names)] for row in range(rows)]
            start += rows
            for row, (name, output) in enumerate(zip(chosen, session.run(batch, chosen), strict=True)):
                want[name].append(expected[name][number][row][None])
                got[name].append(np.asarray(output)[None])
                parts[name].append({key: array[row : row + 1] for key, array in batch.items()})
    kind = bundle.task.outputs
    worst = _worst([compare(want[name], got[name], kind, bundle.scoring(name), batches=parts[name]) for name in names])
    return MixedReport(**dict(worst), passed=within(worst, tolerance))


def _worst(every: Sequence[Comparison]) -> Comparison:
    """Return the largest errors of several comparisons, and their agreement over all rows."""
    choosing = [item for item in every if item.argmax_agreement is not None]
    agreed = sum((item.argmax_agreement or 0.0) * item.rows for item in choosing)
    return Comparison(
        max_abs_error=max(item.max_abs_error for item in every),
        mean_abs_error=max(item.mean_abs_error for item in every),
        max_relative_error=max(item.max_relative_error for item in every),
        rms_relative_error=max(item.rms_relative_error for item in every),
        argmax_agreement=agreed / sum(item.rows for item in choosing) if choosing else None,
        min_cosine=min((item.min_cosine for item in every if item.min_cosine is not None), default=None),
        not_finite=sum(item.not_finite for item in every),
        rows=sum(item.rows for item in every),
    )
