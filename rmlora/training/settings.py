"""The settings of a training run, validated once."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rmlora.config import RMLoRAConfig
from rmlora.errors import ConfigError
from rmlora.labels import parse_labels
from rmlora.tasks import get_task
from rmlora.training.source_digest import source_digest

__all__ = ["BestMetric", "Precision", "TrainSettings"]

Precision = Literal["fp32", "bf16", "fp16"]
BestMetric = Literal["accuracy", "macro_f1", "loss"]


@dataclass(frozen=True)
class TrainSettings:
    """One training run. The defaults are the published recipe: learning rate 1e-3, 5 epochs, batches of 32."""

    base: str
    """Checkpoint directory, .gguf file or hub name."""
    train: str
    """Training data: a csv, tsv, json, jsonl or parquet file, a folder of images, or a hub dataset (``name:split``)."""
    output: Path
    """Directory of the finished adapter package."""
    task: str = "text-classification"
    """Task name, see :data:`rmlora.tasks.TASKS`."""
    validation: str | None = None
    """Validation data; None splits ``validation_fraction`` off the training data."""
    test: str | None = None
    """Test data for the final metrics; None measures on validation data only."""
    text_column: str | None = None
    """Column of the texts; None looks for the usual names (``text``, ``sentence``, …)."""
    label_column: str | None = None
    """Column of the labels; None looks for the usual names (``label``, ``class``, …)."""
    labels: tuple[str, ...] | None = None
    """Label names in the order of the head's outputs; the data may name them or number them from 0. None takes those in
    the training data. A text or path is read by :func:`rmlora.labels.parse_labels`."""
    skip_empty: bool = False
    """Leave out rows without input or label; False refuses them."""
    encoding: str | None = None
    """Encoding of csv, tsv and json files, such as ``cp1252``; None takes UTF-8 or what a byte order mark says."""
    image_column: str | None = None
    """Column of the images; None looks for the usual names (``image``, ``path``, …)."""
    validation_fraction: float = 0.1
    """Share of the training data used for validation if ``validation`` is None."""
    epochs: float = 5.0
    """Passes over the training data."""
    batch_size: int = 32
    """Examples per forward pass and process."""
    gradient_accumulation: int = 1
    """Forward passes per optimizer step."""
    learning_rate: float = 1e-3
    """Peak learning rate; it then falls linearly to 0."""
    warmup_ratio: float = 0.06
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Norm to which the task's gradient is clipped; 0 turns clipping off."""
    max_length: int = 128
    """Tokens; longer texts are truncated."""
    group_by_length: bool = False
    """Batch texts of similar length: less padding, but less random batches."""
    image_size: int | None = None
    """Width and height of images in pixels; None keeps the base's."""
    save_steps: int | None = None
    """Optimizer steps between checkpoints; None saves after every epoch."""
    best_metric: BestMetric = "accuracy"
    """Validation metric that chooses the checkpoint to package."""
    precision: Precision = "fp32"
    """Arithmetic of training; the parameters stay float32."""
    seed: int = 42
    """Seed of the head's weights, the data order and dropout; the masks use ``rmlora.seed``."""
    run_dir: Path | None = None
    """Directory of checkpoints and logs; None is ``<output>.run``."""
    revision: str | None = None
    """Branch, tag or commit of a hub base."""
    trust_remote_code: bool = False
    """Let the base run its own code; only for sources you trust."""
    rmlora: RMLoRAConfig = field(default_factory=RMLoRAConfig)
    """The method: ranks, scale, penalty and target modules."""

    def __post_init__(self) -> None:
        task = get_task(self.task)
        if task.not_trained is not None:
            raise ConfigError(task.not_trained)
        object.__setattr__(self, "output", Path(self.output))
        if not self.output.name:
            raise ConfigError(f"The output '{self.output}' has no name: give a new directory with --output.")
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
        if self.labels is not None:
            names = parse_labels(self.labels) if isinstance(self.labels, str | Path) else tuple(self.labels)
            object.__setattr__(self, "labels", names)
            if len(self.labels) < 2:
                raise ConfigError(f"--labels names {len(self.labels)} label: classification needs at least two.")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError("validation_fraction must lie between 0 and 1: change --validation-fraction.")
        if self.group_by_length and not task.inputs.varies_in_length:
            raise ConfigError(f"--group-by-length is for texts, but the task is {self.task}: leave it out.")
        if self.best_metric not in get_args(BestMetric):
            raise ConfigError(f"best_metric must be one of {', '.join(get_args(BestMetric))}: change --best-metric.")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}: change --precision.")

    @property
    def checkpoints(self) -> Path:
        """``run_dir``, never None."""
        if self.run_dir is None:  # __post_init__ sets it; this is for the type checker
            raise ConfigError("run_dir is not set.")
        return self.run_dir

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values["rmlora"] = self.rmlora.to_dict()
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with the run it continues: all but the directories."""
        return {key: value for key, value in self.to_dict().items() if key not in ("output", "run_dir")}

    def data_digests(self) -> dict[str, str | None]:
        """Return split → SHA-256 of its file or folder; None for data of the hub and for a split that is not given."""
        sources = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: source_digest(source) if source else None for split, source in sources.items()}
