"""What a finished training run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["TrainResult"]


@dataclass(frozen=True)
class TrainResult:
    """The package, metrics and cost of a finished run."""

    output: Path
    """Directory of the adapter package."""
    metrics: dict[str, Any]
    """``validation`` and, if test data was given, ``test``: loss, accuracy and macro F1 of the best checkpoint;
    ``examples``: rows per split; ``best_checkpoint_step``."""
    trainable_parameters: int
    """Elements of all trained tensors: factors and modules_to_save."""
    steps: int
    """Optimizer steps."""
    seconds: float
    """Duration of this call, loading of data and base included."""
    main_process: bool
    """False on the other processes of a distributed run, which write nothing."""
