"""What a verification found, as it stands in a bundle's manifest: typed, and the same from every kind of bundle."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

__all__ = [
    "AdapterReport",
    "BaseReport",
    "Comparison",
    "Evaluation",
    "LayerMismatch",
    "MixedReport",
    "Tolerance",
    "VerificationReport",
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tolerance(_Part):
    """What still counts as the same model."""

    relative_error: float
    """Largest difference of an output, relative to the largest output."""
    rms_error: float
    """Root mean square of the differences, relative to that of the outputs."""
    agreement: float
    """Share of rows whose first choice must be the same; the rest is rounded up to whole rows."""
    cosine: float
    """For vectors, which have no first choice, in place of the two above: least cosine of a row's two vectors."""
    metric_loss: float
    """How much of the metric may be lost on evaluation data; one example more or less is never a loss."""

    def accepts_metric(self, expected: float, got: float, examples: int) -> bool:
        """Return True if a metric that fell from ``expected`` to ``got`` over ``examples`` is acceptable."""
        return (expected - got) * examples <= max(1.0, self.metric_loss * examples) + 1e-9


class Comparison(_Part):
    """How far one set of outputs lies from another, over all rows; errors are over the finite numbers."""

    max_abs_error: FiniteFloat
    mean_abs_error: FiniteFloat
    max_relative_error: FiniteFloat
    """``max_abs_error`` over the largest expected output."""
    rms_relative_error: FiniteFloat
    """Root mean square of the differences over that of the expected outputs."""
    argmax_agreement: float | None = None
    """Share of rows with the same first choice; a row with a NaN or an infinity never has it. None for vectors."""
    not_finite: int
    """Numbers that are NaN or infinite."""
    rows: int
    min_cosine: float | None = None
    """The least cosine of a row's two vectors; None for scores."""


class Evaluation(_Part):
    """A metric measured on labeled data."""

    data: str
    """Name of the file."""
    examples: int
    metric: str
    onnx: float
    pytorch: float | None = None
    """The metric of PyTorch with PEFT; None where it was absent."""


class LayerMismatch(_Part):
    """The first layer whose tensor differs from PyTorch's."""

    module: str
    tensor: str
    relative_error: float | None
    """None where it is not finite."""


class AdapterReport(_Part):
    """One adapter of a bundle with branches, in batches of its own."""

    onnx: Comparison
    pytorch_merged: Comparison | None = None
    """How far PyTorch's merged model lies from PyTorch with PEFT's layers: what merging itself costs."""
    evaluation: Evaluation | None = None
    passed: bool


class BaseReport(Comparison):
    """A graph with branches and no adapter, against the graph before branches came."""

    bit_equal: bool
    passed: bool


class MixedReport(Comparison):
    """All adapters in turn over the rows of a batch; the worst adapter's errors."""

    passed: bool


class VerificationReport(_Part):
    """What was compared with what, and how it ended. Merged bundles have ``onnx``; bundles with branches ``adapters``."""

    date: str
    provider: str
    tolerance: Tolerance
    against: str
    """``PyTorch and PEFT``, or the outputs of theirs that the bundle stores."""
    shapes: list[list[int]]
    """Shapes of the batches compared."""
    passed: bool
    onnx: Comparison | None = None
    pytorch_merged: Comparison | None = None
    first_mismatch: LayerMismatch | None = None
    """Set to None when layers were compared and none could be named; left out when they were not compared."""
    evaluation: Evaluation | None = None
    base: BaseReport | None = None
    adapters: dict[str, AdapterReport] | None = None
    mixed: MixedReport | None = None
    unverified: list[str] | None = None
    """Adapters without stored outputs, where PyTorch was absent."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; what this kind of bundle does not have is left out."""
        return self.model_dump(mode="json", exclude_unset=True)
