"""The settings of a training run, validated once."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from rmlora.config import RMLoRAConfig
from rmlora.errors import ConfigError
from rmlora.labels import parse_labels
from rmlora.pooling import PoolingMode
from rmlora.scoring import HALF, ProblemType
from rmlora.tasks import TASKS, Task, get_task
from rmlora.training.problem_choice import PROBLEMS
from rmlora.training.source_digest import source_digest
from rmlora.training.table import Reading

__all__ = ["BestMetric", "Metric", "Precision", "TrainSettings"]

Precision = Literal["fp32", "bf16", "fp16"]
BestMetric = Literal[
    "accuracy", "macro_f1", "balanced_accuracy", "mcc",
    "micro_f1", "samples_f1", "subset_accuracy", "f1",
    "pearson", "spearman", "mse", "mae",
    "ndcg_at_10", "mrr_at_10", "accuracy_at_1", "recall_at_1",
    "loss", "exact_match", "json", "rougeL",
]  # fmt: skip
Metric = Literal["exact_match", "json", "rougeL"]


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
    pair_column: str | None = None
    """Column of the second text of a pair, with ``text_column`` for the first; None looks for the usual names of both
    (``premise`` and ``hypothesis``, …). Only for text-classification and feature-extraction."""
    negative_column: str | None = None
    """Column of texts that do not belong to the first; None looks for ``negative``. Only for feature-extraction."""
    label_column: str | None = None
    """Column of the labels; None looks for the usual names (``label``, ``class``, …). For feature-extraction it holds the scores
    of pairs (``score``, ``similarity``, …), and for image-feature-extraction what images that belong together share."""
    labels: tuple[str, ...] | None = None
    """Label names in the order of the head's outputs; the data may name them or number them from 0. None takes those in
    the training data. A text or path is read by :func:`rmlora.labels.parse_labels`."""
    problem_type: ProblemType | None = None
    """What the label column holds, in transformers' words: one label per row, several, or a number (regression). None decides by
    the training data, and asks if that can be read in more than one way."""
    skip_empty: bool = False
    """Leave out rows without input or label; False refuses them."""
    encoding: str | None = None
    """Encoding of csv, tsv and json files, such as ``cp1252``; None takes UTF-8 or what a byte order mark says."""
    image_column: str | None = None
    """Column of the images; None looks for the usual names (``image``, ``path``, …)."""
    messages_column: str | None = None
    """Column of chats, each a list of messages with role and content; None looks for ``messages``. Like the other settings that
    say so, only for text-generation."""
    prompt_column: str | None = None
    """Column of prompts; None looks for ``prompt``, ``instruction``, … Only for generation of text."""
    completion_column: str | None = None
    """Column of what answers a prompt; None looks for ``completion``, ``response``, … Only for generation of text."""
    raw: bool = False
    """Join prompt and completion as they stand, without the base's chat template. Only for text-generation."""
    skip_long: bool = False
    """Leave out rows none of whose answer fits into ``max_length``; False refuses them. Only for generation of text."""
    metric: Metric | None = None
    """What is measured on answers generated for validation and test data; None measures loss and perplexity alone. Only for
    generation of text."""
    max_new_tokens: int = 128
    """Most tokens of a generated answer. Only for generation of text."""
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
    max_length: int | None = None
    """Tokens; longer texts are truncated, and contexts of questions read in windows of this length. None takes 128 for
    classification and feature-extraction, 256 for token-classification, 384 for question-answering and 1024 for
    text-generation."""
    group_by_length: bool | None = None
    """Batch texts of similar length: less padding, but less random batches. None does it for text-generation unless
    ``packing`` saves the padding."""
    packing: bool = False
    """Put short examples of a batch end to end in one row, where they do not see each other: the same loss with less padding.
    Only for text-generation."""
    load_in_4bit: bool = False
    """Round the frozen base's linear weights to 4 bits (NF4) while training, as QLoRA does: about a quarter of their memory in
    bf16. The adapter is merged into the base as it is on disk. Only for text-generation."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    pooling: PoolingMode | None = None
    """What makes a vector; None takes the base's sentence-transformers files. Without these, texts take the mean of their tokens,
    and images the best that the base has: ``pooler``, ``cls`` or ``mean``. Only for embeddings."""
    normalize: bool | None = None
    """Divide a vector by its length; None takes the base's files, and without these does so. Only for embeddings."""
    image_size: int | None = None
    """Width and height of images in pixels; None keeps the base's."""
    eval_steps: int | None = None
    """Optimizer steps between evaluations, each with a checkpoint; None evaluates after every epoch."""
    patience: int | None = None
    """Evaluations in a row without a better ``best_metric`` after which training stops; None trains all epochs."""
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None
    """How much each label's examples count in the loss, 1 on average: ``balanced`` counts all labels alike, as scikit-learn
    does; a mapping gives factors, 1 for labels that it lacks. Only for one label per row."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all labels, as torch's cross entropy does. Only for one label per row."""
    threshold: float | Literal["best"] = HALF
    """Probability from which a label applies, where several may: a number, or ``best`` for the one with the best micro F1 on the
    validation data. It is recorded in the package."""
    best_metric: BestMetric | None = None
    """Validation metric that chooses the checkpoint to package. None takes accuracy for one label per row, micro F1 for several,
    Pearson's correlation for numbers, the F1 of entities for token-classification or of answers for question-answering, the
    loss for generation of text, for feature-extraction Spearman's correlation of scored pairs, NDCG of pairs and accuracy
    of triplets, and recall@1 for image-feature-extraction."""
    precision: Precision = "fp32"
    """Arithmetic of training; the parameters stay float32."""
    seed: int = 42
    """Seed of the head's weights, the data order and dropout; the masks use ``rmlora.seed``."""
    seeds: int = 1
    """Number of runs, with ``seed``, ``seed + 1``, …; the best by its validation metric becomes the package."""
    split_seed: int | None = None
    """Seed of the split of validation data; None is ``seed``."""
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
        _refuse_others(self, task)
        if self.packing and self.group_by_length is None:
            object.__setattr__(self, "group_by_length", False)
        for name, value in task.outputs.train_defaults.items():
            if getattr(self, name) is None and (name != "max_length" or task.inputs.varies_in_length):
                object.__setattr__(self, name, value)
        object.__setattr__(self, "output", Path(self.output))
        if not self.output.name:
            raise ConfigError(f"The output '{self.output}' has no name: give a new directory with --output.")
        run_dir = Path(self.run_dir) if self.run_dir else self.output.with_name(self.output.name + ".run")
        object.__setattr__(self, "run_dir", run_dir)
        for name in (
            "batch_size",
            "gradient_accumulation",
            "max_length",
            "max_new_tokens",
            "image_size",
            "eval_steps",
            "patience",
            "seeds",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}: change --{name.replace('_', '-')}.")
        for name in ("epochs", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} must be positive, not {getattr(self, name)}: change --{name.replace('_', '-')}."
                )
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be 0 or more, and finite: change --{name.replace('_', '-')}.")
        if not 0 <= self.warmup_ratio < 1:  # transformers takes 1 and more for a number of steps
            raise ConfigError(
                f"warmup_ratio must be at least 0 and less than 1, not {self.warmup_ratio}: change --warmup-ratio."
            )
        if self.labels is not None:
            names = parse_labels(self.labels) if isinstance(self.labels, str | Path) else tuple(self.labels)
            object.__setattr__(self, "labels", names)
            fewest = PROBLEMS[self.problem_type].fewest_labels if self.problem_type in PROBLEMS else 2
            if len(self.labels) < fewest:
                raise ConfigError(
                    f"--labels names {len(self.labels)} label: classification needs at least two; with --problem-type regression "
                    "it names a number."
                )
        if self.threshold != "best" and not (isinstance(self.threshold, float) and 0 < self.threshold < 1):
            raise ConfigError("threshold must be 'best' or between 0 and 1: change --threshold.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError("label_smoothing must be at least 0 and less than 1: change --label-smoothing.")
        _check_weights(self.class_weights)
        if self.pair_column is not None and not (task.inputs.takes_pairs or task.outputs.learns_from_pairs):
            raise ConfigError(f"--pair-column is for pairs of texts, but the task is {self.task}: leave it out.")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError("validation_fraction must lie between 0 and 1: change --validation-fraction.")
        if self.group_by_length and not task.inputs.varies_in_length:
            raise ConfigError(f"--group-by-length is for texts, but the task is {self.task}: leave it out.")
        _check_metrics(self, task)
        if self.problem_type is not None:
            object.__setattr__(self, "best_metric", _for_problem(self, self.problem_type))
        if self.pooling is not None and self.pooling not in task.outputs.pooling_modes:
            modes = ", ".join(task.outputs.pooling_modes)
            raise ConfigError(f"pooling must be one of {modes} for {self.task}: change --pooling.")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}: change --precision.")

    @property
    def checkpoints(self) -> Path:
        """``run_dir``, never None."""
        if self.run_dir is None:  # __post_init__ sets it; this is for the type checker
            raise ConfigError("run_dir is not set.")
        return self.run_dir

    @property
    def data_seed(self) -> int:
        """``split_seed``, never None."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def token_limit(self) -> int:
        """``max_length`` of a task whose inputs are texts."""
        if self.max_length is None:  # __post_init__ sets it for texts
            raise ConfigError("max_length is not set.")
        return self.max_length

    def for_problem(self, name: ProblemType) -> TrainSettings:
        """Return the settings for what the training data turned out to hold.

        Raises:
            ConfigError: a setting does not fit it.
        """
        return dataclasses.replace(self, problem_type=name)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values["rmlora"] = self.rmlora.to_dict()
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    def identity(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with the run it continues: all but the directories."""
        return {key: value for key, value in self.to_dict().items() if key not in ("output", "run_dir")}

    @property
    def sources(self) -> dict[str, str | None]:
        """Split → file or dataset; None for one that is not given."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def reading(self) -> Reading:
        """How files are read."""
        return Reading(skip_empty=self.skip_empty, encoding=self.encoding)

    def data_digests(self) -> dict[str, str | None]:
        """Return split → SHA-256 of its file or folder; None for data of the hub and for a split that is not given."""
        return {split: source_digest(source) if source else None for split, source in self.sources.items()}


def _refuse_others(settings: TrainSettings, task: Task) -> None:
    """Raise :class:`ConfigError` for a setting that only other kinds of tasks have."""
    defaults = {item.name: item.default for item in dataclasses.fields(settings)}
    for other in TASKS.values():
        for name in sorted(other.train_settings - task.train_settings):
            if getattr(settings, name) != defaults[name]:
                others = [one.name for one in TASKS.values() if name in one.train_settings]
                meant = f"pass --task {others[0]}" if len(others) == 1 else "choose another --task"
                raise ConfigError(
                    f"--{name.replace('_', '-')} is for {', '.join(others)}, but the task is {task.name}: leave it out, or {meant}."
                )


def _check_metrics(settings: TrainSettings, task: Task) -> None:
    if settings.metric is not None and settings.metric not in get_args(Metric):
        raise ConfigError(f"metric must be one of {', '.join(get_args(Metric))}: change --metric.")
    best = task.outputs.best_metrics
    if settings.best_metric is not None and settings.best_metric not in best:
        raise ConfigError(f"best_metric must be one of {', '.join(best)} for {task.name}: change --best-metric.")
    asked = "metric" in task.train_settings
    if asked and settings.best_metric in get_args(Metric) and settings.best_metric != settings.metric:
        raise ConfigError(
            f"--best-metric {settings.best_metric} chooses by what --metric measures: pass --metric {settings.best_metric} too."
        )


def _check_weights(weights: Literal["balanced"] | Mapping[str, float] | None) -> None:
    if isinstance(weights, str) and weights != "balanced":
        raise ConfigError(
            f"class_weights must be 'balanced' or weights by label, not '{weights}': change --class-weights."
        )
    for label, weight in weights.items() if isinstance(weights, Mapping) else ():
        if not 0 < weight < math.inf:
            raise ConfigError(f"The weight of '{label}' must be positive, not {weight}: change --class-weights.")


def _for_problem(settings: TrainSettings, name: ProblemType) -> BestMetric:
    """Return the metric that chooses the checkpoint; raise :class:`ConfigError` for a setting that does not fit the problem."""
    if name not in PROBLEMS:
        raise ConfigError(f"problem_type must be one of {', '.join(PROBLEMS)}: change --problem-type.")
    problem = PROBLEMS[name]
    defaults = {item.name: item.default for item in dataclasses.fields(settings)}
    for other in PROBLEMS.values():
        for setting in sorted(other.own_settings - problem.own_settings):
            if getattr(settings, setting) != defaults[setting]:
                raise ConfigError(
                    f"--{setting.replace('_', '-')} is for {other.name}, but the problem type is {name}: leave it out."
                )
    if settings.best_metric is None:
        return cast(BestMetric, problem.best_metrics[0])
    if settings.best_metric not in problem.best_metrics:
        raise ConfigError(
            f"best_metric must be one of {', '.join(problem.best_metrics)} for {name}: change --best-metric."
        )
    return settings.best_metric
