"""Verifying a bundle with branches: the base untouched, each adapter alone, and all of them mixed in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rmlora.errors import InputError, ParityError
from rmlora.outputs import Outputs
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.bundles.report import (
    AdapterReport,
    BaseReport,
    Comparison,
    Evaluation,
    MixedReport,
    VerificationReport,
)
from rmlora_deploy.runtime import AdapterSession
from rmlora_deploy.runtime.outputs import Arrays, graph_logits
from rmlora_deploy.verification.compare import TOLERANCES, compare, mismatch, within
from rmlora_deploy.verification.evaluation import EvaluationData, keeps_metric, lost_metric, measure
from rmlora_deploy.verification.torch_outputs import finite_outputs
from rmlora_deploy.verification.torch_pair import TorchPair

__all__ = ["raise_on_branch_mismatch", "verify_branches"]

Batches = list[np.ndarray]


def verify_branches(
    bundle: Bundle,
    pair_of: Callable[[str], TorchPair] | None,
    *,
    evaluations: Mapping[str, EvaluationData] | None = None,
    provider: str = "cpu",
) -> tuple[VerificationReport, dict[str, Batches]]:
    """Compare on the bundle's reference inputs; a failed comparison is in the report, not raised.

    Args:
        bundle: what to verify.
        pair_of: loads PyTorch's models of an adapter; None compares with the outputs stored in the bundle.
        evaluations: adapter → labeled data to measure the metric on.
        provider: execution provider to run on.

    Returns:
        the report, and PyTorch's outputs by adapter.

    Raises:
        InputError: PyTorch itself answers with NaN, or there is nothing to compare with.
        ProviderError: the provider is absent.
    """
    tolerance, outputs = TOLERANCES[bundle.precision], bundle.task.outputs
    session = bundle.adapter_session(provider)
    batches, base = load_reference(bundle.path / REFERENCE_FILE)
    rows: dict[str, AdapterReport] = {}
    expected: dict[str, Batches] = {}
    for name, entry in bundle.adapters.items():
        pair = pair_of(name) if pair_of is not None else None
        if pair is not None:
            expected[name] = finite_outputs(pair.adapted, batches, outputs, pair.pooling, what=f"'{name}'")
        elif entry.reference is not None:
            expected[name] = load_reference(bundle.path / entry.reference)[1]
        else:
            continue
        data = (evaluations or {}).get(name)
        rows[name] = _verify_alone(bundle, session, name, batches, expected[name], pair, data)
    names = list(bundle.adapters)
    if not rows and names:
        raise InputError(
            f"{bundle.path} stores no outputs of PyTorch for '{names[0]}', which was added where torch is absent: verify "
            "where PyTorch is installed, without --reference-only."
        )
    logits = graph_logits(bundle.session(provider))
    plain = [logits(batch) for batch in batches]
    against_base = compare(base, plain, outputs)
    untouched = BaseReport(
        **dict(against_base),
        bit_equal=all(np.array_equal(a, b) for a, b in zip(base, plain, strict=True)),
        passed=within(against_base, tolerance),
    )
    mixed = None
    if expected:
        worst = _mixed(session, batches, expected, outputs)
        mixed = MixedReport(**dict(worst), passed=within(worst, tolerance))
    report = VerificationReport(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        provider=provider,
        tolerance=tolerance,
        against="PyTorch and PEFT" if pair_of is not None else "stored outputs of PyTorch and PEFT",
        shapes=[list(next(iter(batch.values())).shape) for batch in batches],
        base=untouched,
        adapters=rows,
        mixed=mixed,
        unverified=[name for name in names if name not in rows],
        passed=untouched.passed and all(row.passed for row in rows.values()) and (mixed is None or mixed.passed),
    )
    return report, expected


def _verify_alone(
    bundle: Bundle, session: AdapterSession, name: str, batches: Sequence[Arrays], expected: Batches,
    pair: TorchPair | None, data: EvaluationData | None,
) -> AdapterReport:  # fmt: skip
    """Return the part of the report on one adapter in batches of its own."""
    tolerance, outputs = TOLERANCES[bundle.precision], bundle.task.outputs
    result = compare(expected, [np.stack(session.run(batch, name)) for batch in batches], outputs)
    row: dict[str, Any] = {"onnx": result}
    passed = within(result, tolerance)
    if pair is not None:
        row["pytorch_merged"] = compare(expected, [pair.merged_output(batch) for batch in batches], outputs)
    if data is not None:
        row["evaluation"] = scores = _measure(bundle, session, name, data, pair)
        passed &= keeps_metric(scores, tolerance)
    return AdapterReport(**row, passed=passed)


def raise_on_branch_mismatch(report: VerificationReport, precision: str) -> None:
    """Raise :class:`ParityError` if the report says that the bundle differs from PyTorch."""
    if report.passed:
        return
    limit = report.tolerance
    if report.base is not None and (what := mismatch(report.base, limit)):
        raise ParityError(f"With no adapter the {precision} graph is not the plain base: it {what}.")
    for name, row in (report.adapters or {}).items():
        if what := mismatch(row.onnx, limit):
            raise ParityError(f"With the adapter '{name}' the {precision} graph {what}.")
        if not row.passed and row.evaluation is not None:
            raise ParityError(f"With the adapter '{name}': {lost_metric(row.evaluation, precision, limit)}")
    if report.mixed is not None:
        raise ParityError(f"In a batch that mixes the adapters the {precision} graph {mismatch(report.mixed, limit)}.")


def _mixed(
    session: AdapterSession, batches: Sequence[Arrays], expected: Mapping[str, Batches], outputs: Outputs
) -> Comparison:
    """Give the rows to all adapters in turn, until each has had some, and return the worst adapter's comparison."""
    names, turn = list(expected), 0
    wanted: dict[str, Batches] = {name: [] for name in names}
    given: dict[str, Batches] = {name: [] for name in names}
    while turn < len(names) or not turn:
        for number, batch in enumerate(batches):
            rows = len(next(iter(batch.values())))
            chosen = [names[(turn + row) % len(names)] for row in range(rows)]
            turn += rows
            for row, (name, output) in enumerate(zip(chosen, session.run(batch, chosen), strict=True)):
                wanted[name].append(expected[name][number][row][None])
                given[name].append(np.asarray(output)[None])
    every = [compare(wanted[name], given[name], outputs) for name in names]
    rows = sum(item.rows for item in every)
    agreed = [item.argmax_agreement * item.rows for item in every if item.argmax_agreement is not None]
    return Comparison(
        max_abs_error=max(item.max_abs_error for item in every),
        mean_abs_error=max(item.mean_abs_error for item in every),
        max_relative_error=max(item.max_relative_error for item in every),
        rms_relative_error=max(item.rms_relative_error for item in every),
        argmax_agreement=sum(agreed) / rows if agreed else None,
        min_cosine=min((item.min_cosine for item in every if item.min_cosine is not None), default=None),
        not_finite=sum(item.not_finite for item in every),
        rows=rows,
    )


def _measure(
    bundle: Bundle, session: AdapterSession, name: str, data: EvaluationData, pair: TorchPair | None
) -> Evaluation:
    models: dict[str, Callable[[Arrays], np.ndarray]] = {"onnx": lambda batch: np.stack(session.run(batch, name))}
    if pair is not None:
        models["pytorch"] = pair.output
    return measure(data, bundle.preprocessor(name), models)
