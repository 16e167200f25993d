"""Verifying a bundle with branches: the base untouched, each adapter alone, and all of them mixed in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import numpy as np

from deploy.bundle import REFERENCE_FILE, Bundle
from deploy.preprocess import Arrays
from deploy.runtime import AdapterSession
from deploy.verify.cases import load_reference
from deploy.verify.compare import TOLERANCES, Comparison, compare, departure
from deploy.verify.evaluation import EvaluationData, lost_metric, measure
from deploy.verify.sources import TorchPair, torch_logits
from rmlora.errors import InputError, ParityError

__all__ = ["raise_on_branch_departure", "verify_branches"]

Logits = list[np.ndarray]


def verify_branches(
    bundle: Bundle,
    pair_of: Callable[[str], TorchPair] | None,
    *,
    names: Sequence[str] | None = None,
    evaluations: Mapping[str, EvaluationData] | None = None,
    provider: str = "cpu",
) -> tuple[dict[str, Any], dict[str, Logits]]:
    """Compare on the bundle's reference inputs; a failed comparison is in the report, not raised.

    Args:
        bundle: what to verify.
        pair_of: loads PyTorch's models of an adapter; None compares with the outputs stored in the bundle.
        names: adapters to verify; None takes all.
        evaluations: adapter → labelled data to measure the metric on.
        provider: execution provider to run on.

    Returns:
        the report (docs/formats.md), and PyTorch's outputs by adapter.

    Raises:
        InputError: an adapter is not known, PyTorch itself answers with NaN, or there is nothing to compare with.
        ProviderError: the provider is absent.
    """
    tolerance = TOLERANCES[bundle.precision]
    names = list(bundle.adapters) if names is None else list(names)
    session = bundle.adapter_session(provider)
    cases, base = load_reference(bundle.path / REFERENCE_FILE)
    rows: dict[str, dict[str, Any]] = {}
    expected: dict[str, Logits] = {}
    for name in names:
        entry = bundle.adapter(name)
        pair = pair_of(name) if pair_of is not None else None
        if pair is not None:
            expected[name] = _finite([torch_logits(pair.adapted, case) for case in cases], name)
        elif "reference" in entry:
            expected[name] = load_reference(bundle.path / entry["reference"])[1]
        else:
            continue
        got = [np.stack(session.run(case, name)) for case in cases]
        rows[name] = {"onnx": asdict(compare(expected[name], got))}
        passed = compare(expected[name], got).within(tolerance)
        if pair is not None:
            merged = [torch_logits(pair.merged, case) for case in cases]
            rows[name]["pytorch_merged"] = asdict(compare(expected[name], merged))
        if evaluations and name in evaluations:
            scores = _measure(bundle, session, name, evaluations[name], pair)
            rows[name]["evaluation"] = scores
            if "pytorch" in scores:
                passed &= tolerance.accepts_metric(scores["pytorch"], scores["onnx"], scores["examples"])
        rows[name]["passed"] = passed
    if not rows and names:
        raise InputError(
            f"{bundle.path} stores no outputs of PyTorch for '{names[0]}', which was added where torch is absent: verify "
            "where PyTorch is installed, without --reference-only."
        )
    untouched = compare(base, plain := _plain(bundle, cases, provider))
    mixed = _mixed(session, cases, expected) if expected else None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "provider": provider,
        "tolerance": asdict(tolerance),
        "against": "PyTorch and PEFT" if pair_of is not None else "stored outputs of PyTorch and PEFT",
        "shapes": [list(next(iter(case.values())).shape) for case in cases],
        "base": {
            **asdict(untouched),
            "bit_equal": all(np.array_equal(a, b) for a, b in zip(base, plain, strict=True)),
            "passed": untouched.within(tolerance),
        },
        "adapters": rows,
        "mixed": None if mixed is None else {**asdict(mixed), "passed": mixed.within(tolerance)},
        "unverified": [name for name in names if name not in rows],
        "passed": all(row["passed"] for row in rows.values())
        and untouched.within(tolerance)
        and (mixed is None or mixed.within(tolerance)),
    }, expected


def raise_on_branch_departure(report: dict[str, Any], precision: str) -> None:
    """Raise :class:`ParityError` when the report says that the bundle departs."""
    if report["passed"]:
        return
    limit = report["tolerance"]
    if what := departure(report["base"], limit):
        raise ParityError(f"With no adapter the {precision} graph is not the plain base: it {what}.")
    for name, row in report["adapters"].items():
        if what := departure(row["onnx"], limit):
            raise ParityError(f"With the adapter '{name}' the {precision} graph {what}.")
        if not row["passed"]:
            raise ParityError(f"With the adapter '{name}': {lost_metric(row['evaluation'], precision, limit)}")
    raise ParityError(f"In a batch that mixes the adapters the {precision} graph {departure(report['mixed'], limit)}.")


def _plain(bundle: Bundle, cases: Sequence[Arrays], provider: str) -> Logits:
    """Return what the graph answers when nothing is fed to its slots."""
    session = bundle.session(provider)
    names = {item.name for item in session.get_inputs()}
    return [
        np.asarray(session.run(None, {name: array for name, array in case.items() if name in names})[0])
        for case in cases
    ]


def _mixed(session: AdapterSession, cases: Sequence[Arrays], expected: Mapping[str, Logits]) -> Comparison:
    """Give the rows to all adapters in turn, until each has had some, and return the worst adapter's comparison."""
    names, turn = list(expected), 0
    wanted: dict[str, Logits] = {name: [] for name in names}
    given: dict[str, Logits] = {name: [] for name in names}
    while turn < len(names) or not turn:
        for number, case in enumerate(cases):
            rows = len(next(iter(case.values())))
            chosen = [names[(turn + row) % len(names)] for row in range(rows)]
            turn += rows
            for row, (name, output) in enumerate(zip(chosen, session.run(case, chosen), strict=True)):
                wanted[name].append(expected[name][number][row][None])
                given[name].append(np.asarray(output)[None])
    every = [compare(wanted[name], given[name]) for name in names]
    return Comparison(
        max_abs_error=max(item.max_abs_error for item in every),
        mean_abs_error=max(item.mean_abs_error for item in every),
        max_relative_error=max(item.max_relative_error for item in every),
        rms_relative_error=max(item.rms_relative_error for item in every),
        argmax_agreement=sum(item.argmax_agreement * item.rows for item in every) / sum(item.rows for item in every),
        not_finite=sum(item.not_finite for item in every),
        rows=sum(item.rows for item in every),
    )


def _measure(
    bundle: Bundle, session: AdapterSession, name: str, data: EvaluationData, pair: TorchPair | None
) -> dict[str, Any]:
    models: dict[str, Callable[[Arrays], np.ndarray]] = {"onnx": lambda case: np.stack(session.run(case, name))}
    if pair is not None:
        adapted = pair.adapted
        models["pytorch"] = lambda case: torch_logits(adapted, case)
    return measure(data, bundle.preprocessor(name), models)


def _finite(expected: Logits, name: str) -> Logits:
    if not all(np.isfinite(logits).all() for logits in expected):
        raise InputError(
            f"PyTorch itself answers with NaN or infinite logits for '{name}': base or adapter is damaged, train or fetch "
            "it again."
        )
    return expected
