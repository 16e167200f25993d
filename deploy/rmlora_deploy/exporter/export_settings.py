"""What to export and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rmlora.pooling import PoolingMode
from rmlora.training.data import Columns
from rmlora_deploy.exporter.precision import Precision

__all__ = ["ExportSettings", "Mode"]

Mode = Literal["merged", "branches"]


@dataclass(frozen=True)
class ExportSettings:
    """The settings of one export."""

    base: str
    adapters: Mapping[str, Path]
    """Name → adapter package; exactly one where it is merged, and its name says nothing then."""
    output: Path
    mode: Mode = "merged"
    precision: Precision = "fp32"
    exporter: str = "torch"
    opset: int | None = None
    task: str | None = None
    graph: Path | None = None
    """An ONNX export of the base that somebody else made; branches only."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Adapter's name → labeled data."""
    columns: Columns = field(default_factory=Columns)
    verify: bool = True
    overwrite: bool = False
    allow_base_mismatch: bool = False
    revision: str | None = None
    pooling: PoolingMode | None = None
    """Which tokens make a vector; None leaves it to the files beside adapters and base."""
    normalize: bool | None = None
    """Whether vectors are brought to length 1; None as above."""
