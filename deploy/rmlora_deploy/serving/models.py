"""A model that clients can name."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmlora_deploy.serving.model_runner import ModelRunner

__all__ = ["ServedModel"]


@dataclass(frozen=True)
class ServedModel:
    """A model that clients can name."""

    id: str
    graph: ModelRunner
    adapter: str | None
    """Which adapter of the graph: its own name, and for one loaded at run time ``@`` and what tells it from others that
    had the name; None for the base, or for what is merged."""
    labels: tuple[str, ...]
    max_length: int | None
    rank: int | None = None
    nbytes: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    file: Path | None = None
    """What the server wrote for it; None for what belongs to a bundle."""

    @property
    def task(self) -> str:
        """Task of the model."""
        return self.graph.bundle.task.name
