"""The settings of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rmlora.pooling import PoolingMode
from rmlora.training.answer_metrics import AnswerMetric
from rmlora.training.data import Columns
from rmlora_deploy.bundles.manifest import Mode, Precision, WeightBits

__all__ = ["ExportSettings"]


@dataclass(frozen=True)
class ExportSettings:
    """What to export and how."""

    base: str
    """Checkpoint directory, ``.gguf`` file or hub name."""
    adapters: Mapping[str, Path]
    """Name → adapter package; exactly one in mode ``merged``, where the name only refers to ``data``."""
    output: Path
    """Bundle directory to write."""
    mode: Mode = "merged"
    precision: Precision = "fp32"
    provider: str | None = None
    """Execution provider that a language model's graph is built for; None takes ``cuda`` for fp16 by the GenAI builder, else
    ``cpu``. Other graphs run on any."""
    exporter: str = "torch"
    """``torch`` or ``optimum``."""
    opset: int | None = None
    """ONNX operator set; None takes the default."""
    task: str | None = None
    """Task of adapters that do not record one."""
    graph: Path | None = None
    """An ONNX export of the base from any exporter; mode ``branches`` only."""
    output_name: str | None = None
    """Output of ``graph`` with the scores; None finds it by name and shape."""
    labels: tuple[str, ...] | None = None
    """Label names of every adapter, in the order of its outputs; None takes those that adapter or base record."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Adapter's name → labeled data to measure the metric on."""
    columns: Columns = field(default_factory=Columns)
    """Column names of ``data`` and ``calibration``."""
    metric: AnswerMetric | None = None
    """What to measure on the answers that a language model generates to ``data``: ``exact_match``, ``json`` or ``rougeL``."""
    max_new_tokens: int | None = None
    """Most tokens of such an answer; None takes 128."""
    calibration: str | None = None
    """Inputs that merged int8 is calibrated on, labeled or not, None takes those of ``data``; or the texts that a language model's
    merged int4 is rounded by, None rounds every weight by itself."""
    int8_bits: WeightBits | None = None
    """Bits of int8's weights; None takes 8. 7 suits x86 processors without VNNI, on which 8 bits are slower."""
    verify: bool = True
    """Compare with PyTorch before the bundle is written."""
    overwrite: bool = False
    """Replace ``output`` if it exists."""
    allow_base_mismatch: bool = False
    """Export adapters that were made for another base."""
    trust_remote_code: bool = False
    """Run code that comes with the base."""
    revision: str | None = None
    """Branch, tag or commit of a hub base."""
    pooling: PoolingMode | None = None
    """Which token vectors make a text's vector; None takes what the files of adapters and base say."""
    normalize: bool | None = None
    """Scale vectors to length 1; None takes what the files of adapters and base say."""
