"""What a finished training run returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.training.settings import TrainSettings
from rmlora.wording import counted

if TYPE_CHECKING:
    from rmlora.training.fit import Fitted

__all__ = [
    "LOWER_IS_BETTER",
    "TrainResult",
    "evaluations_in",
    "evaluations_without_gain",
    "explain_choice",
    "metric_name",
    "metrics_in",
    "summarize",
]


LOWER_IS_BETTER = ("loss", "mse", "mae", "perplexity")
"""Metrics of which a smaller value is better."""


@dataclass(frozen=True)
class TrainResult:
    """The package, metrics and cost of a finished run."""

    output: Path
    """Directory of the adapter package."""
    metrics: dict[str, Any]
    """``validation`` and, if test data was given, ``test``: figures of the packaged checkpoint (the loss and, for one label per
    row, accuracy, macro F1 and mean confidence; for several, F1 in three means and the share of rows without an error; for
    numbers, correlations and errors; for text-generation, perplexity and figures of generated answers; for feature-extraction,
    correlations of cosines, retrieval or accuracy of triplets; for image-feature-extraction, recall@1); ``examples``: rows per
    split; ``best_checkpoint_step``."""
    trainable_parameters: int
    """Elements of all trained tensors: factors and modules_to_save."""
    steps: int
    """Optimizer steps, of all parts of a resumed run."""
    seconds: float
    """Duration of all parts of the run, loading of data and base included."""
    main_process: bool
    """False on the other processes of a distributed run, which write nothing."""
    parts: int = 1
    """How often the run was started until it was complete."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Every evaluation of the run: step, epoch, loss and the other metrics."""
    details: dict[str, Any] = field(default_factory=dict)
    """For ``validation`` and ``test``: precision, recall and F1 of every label, and the confusion matrix of rows with one label;
    metrics and distribution of every number; for text-generation some of the generated answers; for embeddings the metrics of the
    base alone."""
    choice: str = ""
    """Sentence that says which checkpoint was packaged and why."""
    best_metric: str = "loss"
    """Validation metric that chose the checkpoint."""
    seeds: dict[str, Any] = field(default_factory=dict)
    """Of several runs that differ in their seed: which was ``kept``, figures of all ``runs``, and for ``validation`` and ``test``
    mean and standard deviation of every metric; empty for a single run."""
    warnings: tuple[str, ...] = ()
    """Sentences about what speaks against trusting the adapter."""


def summarize(
    fitted: Fitted,
    settings: TrainSettings,
    examples: Mapping[str, int],
    *,
    trainable: int,
    seconds: float,
    parts: int,
    main_process: bool,
) -> TrainResult:
    """Return the result of a run.

    Args:
        fitted: what training returned.
        settings: the run.
        examples: split → rows.
        trainable: elements of all trained tensors.
        seconds: duration of all parts of the run.
        parts: how often it was started.
        main_process: False on the other processes of a distributed run.
    """
    scores = {split: dict(evaluation.scores) for split, evaluation in fitted.evaluations.items()}
    evaluations = evaluations_in(fitted.log_history)
    return TrainResult(
        output=settings.output,
        metrics={**scores, "examples": dict(examples), "best_checkpoint_step": fitted.best_step},
        trainable_parameters=trainable,
        steps=fitted.steps,
        seconds=seconds,
        main_process=main_process,
        parts=parts,
        history=evaluations,
        details={split: dict(evaluation.details) for split, evaluation in fitted.evaluations.items()},
        choice=explain_choice(evaluations, fitted.best_step, str(settings.best_metric))
        + _explain_stop(evaluations, settings),
        best_metric=str(settings.best_metric),
        warnings=tuple(line for evaluation in fitted.evaluations.values() for line in evaluation.warnings),
    )


def evaluations_in(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the evaluations in a trainer's history: step, epoch, loss and the other metrics of each, in order."""
    return [
        {"step": entry["step"], "epoch": entry["epoch"], **metrics_in(entry)}
        for entry in log_history
        if "eval_loss" in entry
    ]


def metrics_in(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an entry in a trainer's history, the loss first; none unless it is an evaluation."""
    found = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
    cost = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    others = {name: value for name, value in found.items() if name not in ("loss", *cost)}
    return {"loss": found["loss"], **others} if "loss" in found else {}


def evaluations_without_gain(values: Sequence[float], *, lower_is_better: bool) -> int:
    """Return how many evaluations there are after the last that was better than all before it."""
    sign = -1.0 if lower_is_better else 1.0
    best = max(range(len(values)), key=lambda at: (sign * values[at], -at), default=-1)
    return len(values) - 1 - best


def _explain_stop(evaluations: Sequence[Mapping[str, float]], settings: TrainSettings) -> str:
    """Return a sentence, after a space, if the run was ended by its patience; an empty text if not."""
    metric = str(settings.best_metric)
    lower = metric in LOWER_IS_BETTER
    waited = evaluations_without_gain([item[metric] for item in evaluations], lower_is_better=lower)
    if settings.patience is None or waited < settings.patience or evaluations[-1]["epoch"] >= settings.epochs:
        return ""
    better = f"{'lower' if lower else 'better'} {metric_name(metric)}"
    return f" Stopped after epoch {evaluations[-1]['epoch']:.3g}: {counted(waited, 'evaluation')} without a {better}."


def metric_name(key: str) -> str:
    """Return how a metric is called in sentences: ``macro F1`` for ``macro_f1``."""
    return _NAMES.get(key, key.replace("_", " "))


_NAMES = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "samples_f1": "F1 of a row",
    "mcc": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "squared error",
    "mae": "absolute error",
    "confidence": "mean confidence",
    "json": "equal JSON",
    "json_valid": "valid JSON",
    "rougeL": "ROUGE-L",
    "ndcg_at_10": "NDCG@10",
    "mrr_at_10": "MRR@10",
    "accuracy_at_1": "accuracy@1",
    "recall_at_1": "recall@1",
}


def explain_choice(evaluations: Sequence[Mapping[str, float]], step: int | None, metric: str) -> str:
    """Return a sentence that says which evaluation's checkpoint was kept and why.

    Args:
        evaluations: of :func:`evaluations_in`.
        step: of the kept checkpoint; None if none was chosen.
        metric: that chooses, as ``accuracy`` or ``loss``.
    """
    kept = next((item for item in evaluations if item["step"] == step), None)
    if kept is None:
        return "Kept the last step: no checkpoint was evaluated before it."
    name, value = metric_name(metric), f"{kept[metric]:.4f}"
    start = f"Kept epoch {kept['epoch']:.3g} (step {kept['step']}): "
    if len(evaluations) == 1:
        return f"{start}the only one evaluated, {name} {value}."
    best = "lowest" if metric in LOWER_IS_BETTER else "best"
    equal = sum(item[metric] == kept[metric] for item in evaluations)
    if equal == 1 or metric == "loss":
        return f"{start}{best} {name} of {counted(len(evaluations), 'evaluation')}, {value}."
    return f"{start}{best} {name}, {value}, reached {counted(equal, 'time')}; of these the lowest loss, {kept['loss']:.4f}."
