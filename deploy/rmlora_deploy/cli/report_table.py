"""A verification report as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from rmlora.wording import counted
from rmlora_deploy.bundles.report import AdapterReport, Comparison, Perplexity, TextReport, VerificationReport
from rmlora_deploy.cli.console import colored

__all__ = ["show_earlier", "show_report"]


def show_report(console: Console, report: VerificationReport) -> None:
    """Print a verification report as a table."""
    shapes = ", ".join("×".join(map(str, shape)) for shape in report.shapes)
    rows = list(_rows(report))
    vectors = any(row.min_cosine is not None for _, row in rows)
    last = "least cosine" if vectors else "same choice"
    table = Table("compared with " + report.against, "max error", "relative", "rms, relative", last)
    for name, row in rows:
        table.add_row(
            name,
            f"{row.max_abs_error:.1e}",
            f"{row.max_relative_error:.1e}",
            f"{row.rms_relative_error:.1e}",
            _agreement(row),
        )
    console.print(table)
    limit = report.tolerance
    other = f"least cosine {limit.cosine:g}" if vectors else f"rms {limit.rms_error:.2g}"
    console.print(f"Inputs of shapes {shapes}; allowed relative error {limit.relative_error:.2g}, {other}.")
    if report.unverified:
        console.print(
            colored(
                "Not verified:",
                "yellow",
                f" {', '.join(report.unverified)} (the bundle stores no outputs of PyTorch for them: "
                "verify where PyTorch is installed).",
            )
        )
    for name, part in _text_parts(report):
        _show_texts(console, name, part.texts, part.perplexity)
    evaluations = [report.evaluation, *(row.evaluation for row in (report.adapters or {}).values())]
    for scores in evaluations:
        if scores is not None:
            torch_score = f"PyTorch {scores.pytorch:.4f}, " if scores.pytorch is not None else ""
            same = f", {scores.identical} answers identical" if scores.identical is not None else ""
            console.print(
                f"{scores.metric[0].upper()}{scores.metric[1:]} on {counted(scores.examples, 'example')} of {scores.data}: {torch_score}"
                f"ONNX Runtime {scores.onnx:.4f}{same}."
            )


def _text_parts(report: VerificationReport) -> Iterator[tuple[str, VerificationReport | AdapterReport]]:
    """Yield the parts of a report that may say how texts were continued, each with its adapter's name."""
    yield "", report
    yield from (report.adapters or {}).items()


def _show_texts(console: Console, adapter: str, texts: TextReport | None, perplexity: Perplexity | None) -> None:
    """Print how a language model's texts compare with PyTorch's."""
    who = f"{adapter}: " if adapter else ""
    if texts is not None:
        ties = f", {texts.ties} part at a tie" if texts.ties else ""
        console.print(
            f"{who}{texts.identical} of {counted(texts.prompts, 'prompt')} continued as by PyTorch{ties} (the likeliest token each time)."
        )
    if perplexity is not None:
        before = f"PyTorch in float32 {perplexity.pytorch:.2f}, " if perplexity.pytorch is not None else ""
        console.print(
            f"{who}perplexity on {counted(perplexity.tokens, 'token')} of {perplexity.data}: {before}ONNX Runtime {perplexity.onnx:.2f}."
        )


def show_earlier(console: Console, reports: Sequence[VerificationReport]) -> None:
    """Print a line for each of the reports that were kept besides the latest."""
    for report in reports:
        errors = [row.max_relative_error for _, row in _rows(report)]
        versions = (report.tools or {}).get("onnxruntime")
        with_version = f", onnxruntime {versions}" if versions else ""
        scores = report.evaluation
        measured = f", {scores.metric} {scores.onnx:.4f} on {scores.data}" if scores is not None else ""
        when = f"Earlier, {report.date} ({report.provider}{with_version}), compared with {report.against}: "
        passed = ("passed", "") if report.passed else ("failed", "red")
        after = f", relative error {max(errors, default=0.0):.1e}{measured}."
        console.print(colored(*passed, after, before=when))


def _agreement(row: Comparison) -> str:
    if row.min_cosine is not None:
        return f"{row.min_cosine:.6f}"
    return f"{row.argmax_agreement:.1%}" if row.argmax_agreement is not None else "–"


def _rows(report: VerificationReport) -> Iterator[tuple[str, Comparison]]:
    """Yield the name and the comparison of each row of the table."""
    if report.pytorch_merged is not None:
        yield "PyTorch, merged", report.pytorch_merged
    if report.onnx is not None:
        yield f"ONNX Runtime, {report.provider}", report.onnx
    if report.base is not None:
        yield f"no adapter{' (bit-equal)' if report.base.bit_equal else ''}", report.base
    for name, row in (report.adapters or {}).items():
        yield name, row.onnx
    if report.mixed is not None:
        yield "all mixed in one batch", report.mixed
