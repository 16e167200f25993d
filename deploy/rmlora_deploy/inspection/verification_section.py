"""What verification measured, as a section of a page: errors, texts, perplexity before and after, metrics."""

from __future__ import annotations

from collections.abc import Iterator

from rmlora.markdown_text import escaped, table
from rmlora.wording import counted
from rmlora_deploy.bundles.manifest import Manifest
from rmlora_deploy.bundles.report import AdapterReport, Comparison, VerificationReport

__all__ = ["verification_section"]


def verification_section(manifest: Manifest) -> list[str]:
    """Return the lines of the section: the latest report, and one line for every earlier one."""
    report = manifest.verification
    if report is None:
        return ["Not verified: run `rmlora-deploy verify` before you rely on this bundle.", ""]
    return [
        _verdict(report), "", *_errors(report), *_texts(report), *_metrics(report), *_unverified(report),
        *_earlier(manifest.earlier_verifications),
    ]  # fmt: skip


def _verdict(report: VerificationReport) -> str:
    limit = report.tolerance
    allowed = [f"relative error {limit.relative_error:.2g}"]
    if limit.absolute_error is not None:
        allowed.append(f"absolute error {limit.absolute_error:.2g}")
    if limit.perplexity is not None:
        allowed.append(f"{limit.perplexity:g} times the perplexity")
    versions = (report.tools or {}).get("onnxruntime")
    where = f"{report.provider}, onnxruntime {versions}" if versions else report.provider
    return (
        f"**{'Passed' if report.passed else 'FAILED'}** on {escaped(report.date)} ({escaped(where)}), compared with "
        f"{escaped(report.against)} on inputs of {counted(len(report.shapes), 'shape')}; allowed are {', '.join(allowed)}."
    )


def _errors(report: VerificationReport) -> list[str]:
    rows = [
        [
            name, f"{row.max_abs_error:.1e}", f"{row.max_relative_error:.1e}", f"{row.rms_relative_error:.1e}",
            f"{row.argmax_agreement:.1%}" if row.argmax_agreement is not None else "",
            f"{row.min_cosine:.6f}" if row.min_cosine is not None else "",
        ]
        for name, row in _compared(report)
    ]  # fmt: skip
    return table(["outputs of", "largest error", "relative", "rms, relative", "same choice", "least cosine"], rows)


def _compared(report: VerificationReport) -> Iterator[tuple[str, Comparison]]:
    if report.pytorch_merged is not None:
        yield "PyTorch, merged", report.pytorch_merged
    if report.onnx is not None:
        yield "the merged graph", report.onnx
    if report.base is not None:
        yield f"no adapter{', equal to the bit' if report.base.bit_equal else ''}", report.base
    for name, row in (report.adapters or {}).items():
        yield escaped(name), row.onnx
    if report.mixed is not None:
        yield "all mixed in one batch", report.mixed


def _parts(report: VerificationReport) -> Iterator[tuple[str, VerificationReport | AdapterReport]]:
    """Yield the parts of a report that may say more than errors, each with its adapter's name."""
    yield "merged", report
    for name, part in (report.adapters or {}).items():
        yield escaped(name), part


def _texts(report: VerificationReport) -> list[str]:
    """Return how texts were continued, and the perplexity before and after the export."""
    rows = []
    for name, part in _parts(report):
        texts, surprise = part.texts, part.perplexity
        if texts is None and surprise is None:
            continue
        same = (
            f"{texts.identical} of {texts.prompts}" + (f" ({texts.ties} part at a tie)" if texts.ties else "")
            if texts
            else ""
        )
        before = f"{surprise.pytorch:.2f}" if surprise is not None and surprise.pytorch is not None else ""
        after = f"{surprise.onnx:.2f}" if surprise is not None else ""
        on = f"{counted(surprise.tokens, 'token')} of {escaped(surprise.data)}" if surprise is not None else ""
        rows.append([name, same, before, after, on])
    head = [
        "texts of",
        "continued as by PyTorch",
        "perplexity before (PyTorch, float32)",
        "perplexity after",
        "measured on",
    ]
    return table(head, rows) if rows else []


def _metrics(report: VerificationReport) -> list[str]:
    rows = []
    for name, part in _parts(report):
        found = part.evaluation
        if found is not None:
            before = f"{found.pytorch:.4f}" if found.pytorch is not None else ""
            data = f"{counted(found.examples, 'example')} of {escaped(found.data)}"
            rows.append([name, escaped(found.metric), before, f"{found.onnx:.4f}", data])
    return table(["answers of", "metric", "PyTorch", "ONNX Runtime", "measured on"], rows) if rows else []


def _unverified(report: VerificationReport) -> list[str]:
    if not report.unverified:
        return []
    return [f"Not verified: {', '.join(map(escaped, report.unverified))}.", ""]


def _earlier(reports: list[VerificationReport]) -> list[str]:
    lines = [
        f"- {escaped(report.date)}, {escaped(report.provider)}, compared with {escaped(report.against)}: "
        f"{'passed' if report.passed else 'FAILED'}, relative error "
        f"{max((row.max_relative_error for _, row in _compared(report)), default=0.0):.1e}"
        for report in reports
    ]
    return ["Earlier:", "", *lines, ""] if lines else []
