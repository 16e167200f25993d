"""Several runs that differ in their seed only: how much the result varies, and the best of them as the package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rmlora.errors import ConfigError
from rmlora.package import METADATA_FILE, write_metadata
from rmlora.readable import is_readable_file
from rmlora.storage import atomic_directory, read_json, refuse_existing, write_json
from rmlora.training.json_numbers import json_numbers
from rmlora.training.result import LOWER_IS_BETTER, TrainResult, metric_name
from rmlora.training.resume import SETTINGS_FILE
from rmlora.training.settings import TrainSettings
from rmlora.training.trained_package import EVALUATION_FILE
from rmlora.wording import counted

__all__ = ["spread_of", "train_seeds"]


@dataclass(frozen=True)
class _Run:
    seed: int
    result: TrainResult


def train_seeds(
    settings: TrainSettings, train_one: Callable[[TrainSettings], TrainResult], *, console: Console, overwrite: bool
) -> TrainResult:
    """Train one adapter for each seed, and copy the one with the best validation metric to ``settings.output``.

    All see the same validation data. Their packages and checkpoints stay in ``run_dir/seed-N``; when the command is given
    again, finished ones are only evaluated again.

    Args:
        settings: of all runs; ``seed`` is the first one's.
        train_one: trains and writes a package, continuing a run that was interrupted.
        console: where progress is shown.
        overwrite: replace an existing package.

    Raises:
        ConfigError: there are several processes, or ``run_dir`` holds the run of a single seed.
        RMLoRAError: of a run.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "--seeds trains one run after another in one process: leave torchrun or accelerate launch out."
        )
    refuse_existing(settings.output, overwrite=overwrite)
    if is_readable_file(settings.checkpoints / SETTINGS_FILE):
        raise ConfigError(
            f"{settings.checkpoints} holds the run of a single seed, and --seeds keeps one run for each: choose another --run-dir."
        )
    runs = []
    for number in range(settings.seeds):
        one = _settings_of(settings, number)
        console.print(f"Seed {one.seed} ({number + 1} of {settings.seeds})", style="bold")
        runs.append(_Run(one.seed, train_one(one)))
    return _keep_best(runs, settings.output, overwrite=overwrite)


def spread_of(results: Sequence[TrainResult]) -> dict[str, dict[str, dict[str, float]]]:
    """Return split → metric → mean and standard deviation (of a sample) over the results."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for split in ("validation", "test"):
        for metric in results[0].metrics.get(split, {}):
            values = [result.metrics[split][metric] for result in results]
            spread = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
            found.setdefault(split, {})[metric] = spread
    return found


def _settings_of(settings: TrainSettings, number: int) -> TrainSettings:
    """Return the settings of one run: seeds of training and masks move on, that of the split stays."""
    directory = settings.checkpoints / f"seed-{settings.seed + number}"
    return replace(
        settings,
        seeds=1,
        seed=settings.seed + number,
        split_seed=settings.data_seed,
        rmlora=replace(settings.rmlora, seed=settings.rmlora.seed + number),
        output=directory / "package" / settings.output.name,
        run_dir=directory / "run",
    )


def _keep_best(runs: Sequence[_Run], output: Path, *, overwrite: bool) -> TrainResult:
    metric = runs[0].result.best_metric
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    validation = {run.seed: run.result.metrics["validation"] for run in runs}
    best = max(runs, key=lambda run: (sign * validation[run.seed][metric], -validation[run.seed]["loss"]))
    value = validation[best.seed][metric]
    choice = f"{best.result.choice} Kept seed {best.seed}: {'lowest' if sign < 0 else 'best'} validation {metric_name(metric)} of {counted(len(runs), 'seed')}, {value:.4f}."
    splits = ("validation", "test")
    seeds = {
        "kept": best.seed,
        "runs": {str(run.seed): {s: m for s, m in run.result.metrics.items() if s in splits} for run in runs},
        **spread_of([run.result for run in runs]),
    }
    with atomic_directory(output, overwrite=overwrite) as directory:
        shutil.copytree(best.result.output, directory, dirs_exist_ok=True)
        _add(directory / EVALUATION_FILE, {"kept": choice, "seeds": seeds})
        metadata = read_json(directory / METADATA_FILE, what="Adapter metadata")
        training = {**metadata["training"], "seeds": seeds}
        write_metadata(directory, json_numbers({**metadata, "training": training}))
    return replace(
        best.result,
        output=output,
        choice=choice,
        seeds=seeds,
        seconds=sum(run.result.seconds for run in runs),
    )


def _add(file: Path, values: Mapping[str, Any]) -> None:
    write_json(file, json_numbers({**read_json(file, what="Evaluation"), **values}))
