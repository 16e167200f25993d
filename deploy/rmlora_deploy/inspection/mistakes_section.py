"""What a graph gets right and wrong on labeled data, as a section of a page: label by label, and what it takes for what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rmlora.markdown_text import escaped, table
from rmlora.wording import counted
from rmlora_deploy.bundles.report import EvaluationDetails, VerificationReport

__all__ = ["Confusion", "confusion_heading", "confusions", "labels_in", "mistakes_section"]

Confusion = Mapping[str, Mapping[str, int]]
"""Right label → label that was given → rows."""
_WORST = 20
"""Labels that are listed, the hardest first."""
_MATRIX = 10
"""Labels up to which a confusion matrix is a table; above, the commonest mistakes are listed."""
_COMMONEST = 12
"""Mistakes that are listed then."""


def mistakes_section(report: VerificationReport | None) -> list[str]:
    """Return the lines of the section; none if nothing was measured on labeled data that says more than its metric."""
    return [line for name, details in _measured(report) for line in _part(name, details)]


def confusions(report: VerificationReport | None) -> dict[str, Confusion]:
    """Return heading → confusion of the adapter below it, for plots."""
    return {confusion_heading(name): found.confusion for name, found in _measured(report) if found.confusion}


def confusion_heading(name: str) -> str:
    """Return the heading of an adapter's confusion, as Markdown; ``name`` is empty for a merged bundle."""
    return _heading("What it takes for what", name)


def _measured(report: VerificationReport | None) -> Iterator[tuple[str, EvaluationDetails]]:
    """Yield every adapter's name, empty for a merged bundle, with what was found."""
    if report is None:
        return
    parts = {"": report.evaluation, **{name: part.evaluation for name, part in (report.adapters or {}).items()}}
    for name, evaluation in parts.items():
        if evaluation is not None and evaluation.details is not None:
            yield name, evaluation.details


def _part(name: str, details: EvaluationDetails) -> Iterator[str]:
    """Yield the lines about one adapter."""
    tables = {
        _heading("Label by label", name): _labels(details),
        _heading("By kind of question", name): _questions(details),
        confusion_heading(name): _confused(details.confusion or {}),
    }
    for heading, lines in tables.items():
        if lines:
            yield from (heading, "", *lines)


def _heading(title: str, name: str) -> str:
    return f"### {title}: {escaped(name)}" if name else f"### {title}"


def _labels(details: EvaluationDetails) -> list[str]:
    """Return the figures of every label that occurs; of many, those that are found worst."""
    occurring = {label: figures for label, figures in (details.per_class or {}).items() if figures.examples}
    hardest = sorted(occurring.items(), key=lambda item: item[1].f1)[:_WORST] if len(occurring) > _WORST else None
    rows = [
        [escaped(label), f"{row.examples:,}", f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}"]
        for label, row in (hardest if hardest is not None else occurring.items())
    ]
    if not rows:
        return []
    intro = [f"The {_WORST} hardest of {len(occurring)} labels:", ""] if hardest is not None else []
    return [*intro, *table(["label", "examples", "precision", "recall", "F1"], rows)]


def _questions(details: EvaluationDetails) -> list[str]:
    kinds = {"with an answer": details.with_answer, "without an answer": details.without_answer}
    rows = [
        [name, f"{row.examples:,}", f"{row.exact_match:.3f}", f"{row.f1:.3f}"]
        for name, row in kinds.items()
        if row is not None
    ]
    return table(["questions", "examples", "exact match", "F1"], rows) if rows else []


def _confused(confusion: Confusion) -> list[str]:
    labels = labels_in(confusion)
    if not labels:
        return []
    if len(labels) <= _MATRIX:
        rows = [
            [escaped(label), *(f"{confusion.get(label, {}).get(given, 0) or '·'}" for given in labels)]
            for label in labels
        ]
        return table(["right ↓ · given →", *map(escaped, labels)], rows)
    mistakes = [
        (rows, label, given) for label, counts in confusion.items() for given, rows in counts.items() if given != label
    ]
    if not mistakes:
        return ["Nothing is taken for anything else.", ""]
    commonest = sorted(mistakes, key=lambda mistake: -mistake[0])[:_COMMONEST]
    total = sum(rows for rows, _, _ in mistakes)
    return [
        f"{counted(total, 'mistake')}; the commonest are",
        "",
        *table(
            ["right", "given", "rows"],
            [[escaped(label), escaped(given), f"{rows}"] for rows, label, given in commonest],
        ),
    ]


def labels_in(confusion: Confusion) -> list[str]:
    """Return every label that is right or given, in the order of first mention."""
    return list(dict.fromkeys([*confusion, *(given for counts in confusion.values() for given in counts)]))
