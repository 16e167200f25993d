"""What a verification found: the typed report in a manifest, one for every kind of bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

__all__ = [
    "AdapterReport",
    "AnswerFigures",
    "BaseReport",
    "Comparison",
    "Evaluation",
    "EvaluationDetails",
    "LabelFigures",
    "LayerMismatch",
    "MixedReport",
    "Perplexity",
    "TextReport",
    "Tolerance",
    "VerificationReport",
    "keep_reports",
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tolerance(_Part):
    """How far outputs may differ and still count as the same model's."""

    relative_error: float
    """Largest difference of an output, relative to the largest output."""
    rms_error: float
    """Root mean square of the differences, relative to that of the outputs."""
    agreement: float
    """Share of rows whose first choice must be the same; the rows that may differ are rounded up to a whole number."""
    cosine: float
    """Least cosine of a row's two vectors; for vectors it replaces ``rms_error`` and ``agreement``."""
    metric_loss: float
    """How much of the metric may be lost on evaluation data; one example more or less never counts as a loss."""
    absolute_error: float | None = None
    """Difference of a logit that is accepted whatever the largest one is; None for none."""
    perplexity: float | None = None
    """Largest ratio of the graph's perplexity to PyTorch's; None for models that do not generate text."""

    def accepts_metric(self, expected: float, got: float, examples: int) -> bool:
        """Return True if a metric that fell from ``expected`` to ``got`` over ``examples`` is acceptable."""
        return (expected - got) * examples <= max(1.0, self.metric_loss * examples) + 1e-9


class Comparison(_Part):
    """How far one set of outputs is from another, over all rows; errors are over the finite numbers."""

    max_abs_error: FiniteFloat
    mean_abs_error: FiniteFloat
    max_relative_error: FiniteFloat
    """``max_abs_error`` over the largest expected output."""
    rms_relative_error: FiniteFloat
    """Root mean square of the differences over that of the expected outputs."""
    argmax_agreement: float | None = None
    """Share of rows with the same first choice; a row with NaN or infinity counts as different. None for vectors."""
    not_finite: int
    """Count of numbers that are NaN or infinite."""
    rows: int
    min_cosine: float | None = None
    """The least cosine of a row's two vectors; None for scores."""


class LabelFigures(_Part):
    """How well one label is found."""

    examples: int
    precision: float
    recall: float
    f1: float


class AnswerFigures(_Part):
    """How well questions of one kind are answered, by SQuAD's definitions."""

    examples: int
    exact_match: float
    f1: float


class EvaluationDetails(_Part):
    """What is right and what is wrong; the keys are those of an adapter's ``evaluation.json``."""

    per_class: dict[str, LabelFigures] | None = None
    """Label, or kind of entity, → its figures."""
    confusion: dict[str, dict[str, int]] | None = None
    """Right label → label that was given → rows; where a row has one label. Counts of zero are left out."""
    with_answer: AnswerFigures | None = None
    """Of the questions that have an answer."""
    without_answer: AnswerFigures | None = None
    """Of those that have none."""


class Evaluation(_Part):
    """A metric measured on labeled data."""

    data: str
    """Name of the file."""
    examples: int
    metric: str
    onnx: float
    pytorch: float | None = None
    """The metric of PyTorch with PEFT; None if PyTorch was not installed."""
    identical: int | None = None
    """Generated answers that are PyTorch's to the letter; None for models that do not generate text."""
    details: EvaluationDetails | None = None
    """Of the graph's answers; None for numbers, vectors and texts."""


class TextReport(_Part):
    """Texts that the graph and PyTorch continue, both taking the likeliest token each time."""

    prompts: int
    identical: int
    """Prompts with the same answer."""
    ties: int
    """Prompts whose answers part where PyTorch's two likeliest tokens are as close as the accepted difference."""
    tokens: int
    """Tokens of PyTorch's answers."""

    @property
    def agree(self) -> bool:
        """True if no answer is another one than PyTorch's, ties aside."""
        return self.identical + self.ties == self.prompts


class Perplexity(_Part):
    """How surprised a model is by a text: the exponential of the mean negative log-probability of its tokens."""

    data: str
    """Name of the file, or ``built-in text``."""
    tokens: int
    """Tokens that were predicted."""
    onnx: FiniteFloat
    pytorch: FiniteFloat | None = None
    """Of PyTorch with PEFT in float32; None if PyTorch was not installed."""


class LayerMismatch(_Part):
    """The first layer whose tensor differs from PyTorch's."""

    module: str
    tensor: str
    relative_error: float | None
    """None if it is not finite."""


class AdapterReport(_Part):
    """One adapter of a bundle with branches, alone in every batch."""

    onnx: Comparison
    pytorch_merged: Comparison | None = None
    """How far PyTorch's merged model is from PyTorch with PEFT's layers: the error of merging itself."""
    evaluation: Evaluation | None = None
    texts: TextReport | None = None
    perplexity: Perplexity | None = None
    passed: bool


class BaseReport(Comparison):
    """The graph with branches and no adapter, against the graph before branches were inserted."""

    bit_equal: bool
    passed: bool


class MixedReport(Comparison):
    """Batches whose rows use all adapters in turn; the errors of the worst adapter."""

    passed: bool


class VerificationReport(_Part):
    """What was compared and whether it passed; merged bundles fill ``onnx``, bundles with branches ``adapters``."""

    date: str
    tools: dict[str, str | None] | None = None
    """Package → version, of the machine that compared; None in reports of format version 2 and older."""
    provider: str
    tolerance: Tolerance
    against: str
    """``PyTorch and PEFT``, or ``stored outputs of PyTorch and PEFT``."""
    shapes: list[list[int]]
    """Shapes of the batches that were compared."""
    passed: bool
    onnx: Comparison | None = None
    pytorch_merged: Comparison | None = None
    first_mismatch: LayerMismatch | None = None
    """None if layers were compared and none could be named; never set if they were not compared."""
    evaluation: Evaluation | None = None
    texts: TextReport | None = None
    """Of a merged language model."""
    perplexity: Perplexity | None = None
    """Of a merged language model."""
    base: BaseReport | None = None
    adapters: dict[str, AdapterReport] | None = None
    mixed: MixedReport | None = None
    unverified: list[str] | None = None
    """Adapters without stored outputs, when PyTorch was not installed."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; fields that were never set are left out."""
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def kind(self) -> tuple[str, str]:
        """What it was compared with, and the execution provider: reports of one kind repeat the same comparison."""
        return self.against, self.provider


_KEPT = 3
"""Reports of each kind that are kept."""


def keep_reports(reports: Sequence[VerificationReport]) -> list[VerificationReport]:
    """Return the newest three reports of each kind; ``reports`` and the result are newest first."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for report in reports:
        seen[report.kind] += 1
        if seen[report.kind] <= _KEPT:
            kept.append(report)
    return kept
