"""Everything that decides a training run, validated once."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rmlora.config import RMLoRAConfig
from rmlora.errors import ConfigError
from rmlora.tasks import get_task

__all__ = ["BestMetric", "Precision", "TrainSettings"]

Precision = Literal["fp32", "bf16", "fp16"]
BestMetric = Literal["accuracy", "macro_f1", "loss"]


@dataclass(frozen=True)
class TrainSettings:
    """One training run. Defaults are the published recipe: learning rate 1e-3, 5 epochs, batches of 32."""

    base: str
    """Checkpoint directory, .gguf file or hub name."""
    train: str
    """Training data: a csv, jsonl or parquet file, a folder of images, or a hub dataset."""
    output: Path
    """Directory of the finished adapter package."""
    task: str = "text-classification"
    validation: str | None = None
    """Validation data; None splits ``validation_fraction`` off the training data."""
    test: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    validation_fraction: float = 0.1
    epochs: float = 5.0
    batch_size: int = 32
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 128
    """Tokens; longer texts are cut."""
    group_by_length: bool = False
    """Make batches of texts of about the same length: less padding, at the price of less random batches."""
    image_size: int | None = None
    """Pixels on a side; None keeps the base's."""
    save_steps: int | None = None
    """Optimizer steps between checkpoints; None saves after every epoch."""
    best_metric: BestMetric = "accuracy"
    precision: Precision = "fp32"
    seed: int = 42
    """Seed of the head's weights, the order of the data and dropout; the masks' is ``rmlora.seed``."""
    run_dir: Path | None = None
    """Checkpoints and logs; None is ``<output>.run``."""
    revision: str | None = None
    trust_remote_code: bool = False
    rmlora: RMLoRAConfig = field(default_factory=RMLoRAConfig)

    def __post_init__(self) -> None:
        task = get_task(self.task)
        if task.not_trained is not None:
            raise ConfigError(task.not_trained)
        object.__setattr__(self, "output", Path(self.output))
        run_dir = Path(self.run_dir) if self.run_dir else self.output.with_name(self.output.name + ".run")
        object.__setattr__(self, "run_dir", run_dir)
        for name in ("batch_size", "gradient_accumulation", "max_length", "image_size", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}: change --{name.replace('_', '-')}.")
        for name in ("epochs", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} must be positive, not {getattr(self, name)}: change --{name.replace('_', '-')}."
                )
        for name in ("warmup_ratio", "weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or more: change --{name.replace('_', '-')}.")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError("validation_fraction must lie between 0 and 1: change --validation-fraction.")
        if self.group_by_length and not task.inputs.varies_in_length:
            raise ConfigError(f"--group-by-length is for texts, and the task is {self.task}: leave it out.")
        if self.best_metric not in get_args(BestMetric):
            raise ConfigError(f"best_metric must be one of {', '.join(get_args(BestMetric))}: change --best-metric.")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}: change --precision.")

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints and logs."""
        if self.run_dir is None:  # __post_init__ has filled it; this tells the type checker
            raise ConfigError("run_dir is not set.")
        return self.run_dir

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values["rmlora"] = self.rmlora.to_dict()
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    def identity(self) -> dict[str, Any]:
        """Return the values that a resumed run must share with the one it continues."""
        free = {"output", "run_dir"}
        return {key: value for key, value in self.to_dict().items() if key not in free}
