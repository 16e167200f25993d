"""What ``rmlora-deploy train`` prints at its end: scores, labels, warnings and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rmlora.tasks import get_task
from rmlora.training.result import TrainResult, metric_name
from rmlora.wording import counted, duration
from rmlora_deploy.cli.console import colored

__all__ = ["next_command", "show_result"]

_SHOWN = 20
"""Labels that are listed with their figures; ``evaluation.json`` has all."""
_ANSWERS = 3
"""Generated answers that are shown; ``evaluation.json`` has more."""


def show_result(console: Console, result: TrainResult, suggestion: str) -> None:
    """Print the result of a training run.

    Args:
        console: to print on.
        result: of the run.
        suggestion: next command.
    """
    console.print(result.choice)
    for split in ("validation", "test"):
        if split in result.metrics:
            figures = ", ".join(f"{metric_name(name)} {value:.4f}" for name, value in result.metrics[split].items())
            console.print(f"{split:>10}: {figures} on {counted(result.metrics['examples'][split], 'example')}")
    _show_base(console, result)
    _show_seeds(console, result)
    _show_labels(console, result)
    _show_answers(console, result)
    for warning in result.warnings:
        console.print(colored("Warning:", "yellow", f" {warning}"))
    parts = f" in {counted(result.parts, 'part')}" if result.parts > 1 else ""
    console.print(
        f"Adapter written to {result.output}: {counted(result.trainable_parameters, 'trained parameter')}, "
        f"{counted(result.steps, 'step')}, {duration(result.seconds)}{parts}."
    )
    console.print("Next:", style="bold")
    console.print(f"  {suggestion}", soft_wrap=True)


def next_command(output: Path, settings: Mapping[str, Any]) -> str:
    """Return the command that exports the adapter at ``output``, or merges it if its task is not exported.

    Args:
        output: directory of the adapter.
        settings: ``base``, ``revision`` and ``task`` of the run.
    """
    revision = ["--revision", settings["revision"]] if settings["revision"] else []
    if get_task(settings["task"]).not_exported is not None:
        words = ["merge", settings["base"], str(output), *revision, "--output", f"{output}-merged"]
    else:
        words = ["export", settings["base"], "--adapter", str(output), *revision, "--output", f"{output}-bundle"]
    return shlex.join(["rmlora-deploy", *words])


def _show_base(console: Console, result: TrainResult) -> None:
    """Print what the base reaches without the adapter, where that was measured."""
    split, scores = _last(result, "base")
    if scores:
        figures = ", ".join(f"{metric_name(name)} {value:.4f}" for name, value in scores.items())
        console.print(f"{'base alone':>10}: {figures} on the {split} data")


def _show_seeds(console: Console, result: TrainResult) -> None:
    """Print mean and spread of every metric over the seeds of a run of several, and each seed's value."""
    if not result.seeds:
        return
    runs = result.seeds["runs"]
    table = Table(f"over {counted(len(runs), 'seed')}", "mean", "± std", *runs)
    for column in table.columns[1:]:
        column.justify = "right"
    for split in ("validation", "test"):
        for name, spread in result.seeds.get(split, {}).items():
            values = (f"{scores[split][name]:.4f}" for scores in runs.values())
            table.add_row(f"{split} {metric_name(name)}", f"{spread['mean']:.4f}", f"{spread['std']:.4f}", *values)
    console.print(table)


def _show_labels(console: Console, result: TrainResult) -> None:
    """Print the figures of every label on the test data, or on the validation data if there is none."""
    split, labels = _last(result, "per_class")
    if not labels:
        return
    table = Table(f"label ({split})", "examples", "precision", "recall", "F1")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, scores in list(labels.items())[:_SHOWN]:
        figures = (f"{scores[key]:.4f}" if scores["examples"] else "–" for key in ("precision", "recall", "f1"))
        table.add_row(name, f"{scores['examples']:,}", *figures)
    console.print(table)
    if len(labels) > _SHOWN:
        console.print(f"  and {counted(len(labels) - _SHOWN, 'more label')}: see evaluation.json in the package.")


def _show_answers(console: Console, result: TrainResult) -> None:
    """Print a generated answer beside the expected one, for the test data if there is any."""
    split, answers = _last(result, "answers")
    for item in answers[:_ANSWERS]:
        console.print(f"{split:>10}: expected  {item['expected']}", markup=False, soft_wrap=True)
        console.print(f"{'':>10}  generated {item['generated']}", markup=False, soft_wrap=True)


def _last(result: TrainResult, what: str) -> tuple[str, Any]:
    """Return the last split whose details have ``what``, and that; an empty name and collection if none has."""
    found = [(split, details[what]) for split, details in result.details.items() if details.get(what)]
    return found[-1] if found else ("", [])
