"""What ``rmlora-deploy train`` prints at its end: scores, labels, warnings and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rmlora.training.result import TrainResult
from rmlora.wording import counted, duration
from rmlora_deploy.cli.console import colored

__all__ = ["export_command", "show_result"]

_SHOWN = 20
"""Labels that are listed with their figures; ``evaluation.json`` has all."""


def show_result(console: Console, result: TrainResult, next_command: str) -> None:
    """Print the result of a training run.

    Args:
        console: to print on.
        result: of the run.
        next_command: to suggest.
    """
    console.print(result.choice)
    for split in ("validation", "test"):
        if split in result.metrics:
            scores = result.metrics[split]
            console.print(
                f"{split:>10}: accuracy {scores['accuracy']:.4f}, macro F1 {scores['macro_f1']:.4f}, loss "
                f"{scores['loss']:.4f}, mean confidence {scores['confidence']:.2f} on "
                f"{counted(result.metrics['examples'][split], 'example')}"
            )
    _show_labels(console, result)
    for warning in result.warnings:
        console.print(colored("Warning:", "yellow", f" {warning}"))
    parts = f" in {counted(result.parts, 'part')}" if result.parts > 1 else ""
    console.print(
        f"Adapter written to {result.output}: {counted(result.trainable_parameters, 'trained parameter')}, "
        f"{counted(result.steps, 'step')}, {duration(result.seconds)}{parts}."
    )
    console.print("Next:", style="bold")
    console.print(f"  {next_command}", soft_wrap=True)


def export_command(output: Path, settings: Mapping[str, Any]) -> str:
    """Return the command that exports the adapter at ``output``.

    Args:
        output: directory of the adapter.
        settings: ``base`` and ``revision`` of the run.
    """
    words = ["rmlora-deploy", "export", settings["base"], "--adapter", str(output)]
    if settings["revision"]:
        words += ["--revision", settings["revision"]]
    return shlex.join([*words, "--output", f"{output}-bundle"])


def _show_labels(console: Console, result: TrainResult) -> None:
    """Print the figures of every label on the test data, or on the validation data if there is none."""
    split = "test" if "test" in result.per_class else "validation"
    labels = result.per_class[split]["per_class"]
    table = Table(f"label ({split})", "examples", "precision", "recall", "F1")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, scores in list(labels.items())[:_SHOWN]:
        figures = (f"{scores[key]:.4f}" if scores["examples"] else "–" for key in ("precision", "recall", "f1"))
        table.add_row(name, f"{scores['examples']:,}", *figures)
    console.print(table)
    if len(labels) > _SHOWN:
        console.print(f"  and {counted(len(labels) - _SHOWN, 'more label')}: see evaluation.json in the package.")
