"""Which runs are still to do, and doing them: in worker processes, each record written as soon as it is there."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.quality.store import RunStore
from benchmarks.quality.study import LEARNING_RATES, RunSpec, sizes_of, study_task

__all__ = ["Campaign", "chosen_learning_rate", "run_all"]


@dataclass(frozen=True)
class Campaign:
    """A part of the study: every combination of these, with each method's learning rate chosen first."""

    tasks: Sequence[str]
    sizes: Sequence[int]
    methods: Sequence[str]
    seeds: Sequence[int]
    learning_rates: Sequence[float] = LEARNING_RATES
    label_noise: float = 0.0
    """Wrong training labels, at the rates chosen without them."""
    rate_factor: float = 1.0
    """Multiplies the chosen rate, to see what a rate too high does."""

    def to_do(self, store: RunStore) -> list[RunSpec]:
        """Return the runs that can be started now; the seeds after the first wait until the rates are chosen."""
        specs: list[RunSpec] = []
        for size in self.sizes:
            for method in self.methods:
                for tasks in self._groups(size):
                    specs += self._runs_of(store, size, method, tasks)
        return [spec for spec in dict.fromkeys(specs) if spec not in store]

    def _runs_of(self, store: RunStore, size: int, method: str, tasks: Sequence[str]) -> list[RunSpec]:
        grid = [RunSpec(task, size, method, rate, self.seeds[0]) for task in tasks for rate in self.learning_rates]
        rate = chosen_learning_rate(store, tasks, size, method, self.seeds[0], self.learning_rates)
        if rate is None:
            return grid
        rate = round(rate * self.rate_factor, 10)
        return [RunSpec(task, size, method, rate, seed, self.label_noise) for seed in self.seeds for task in tasks]

    def _groups(self, size: int) -> list[list[str]]:
        """Return the tasks that have this size, by modality: one learning rate is chosen for each base model."""
        groups: dict[str, list[str]] = {}
        for task in [task for task in self.tasks if size in sizes_of(task)]:
            groups.setdefault(study_task(task).modality, []).append(task)
        return list(groups.values())


def chosen_learning_rate(
    store: RunStore, tasks: Sequence[str], size: int, method: str, seed: int, rates: Sequence[float]
) -> float | None:
    """Return the rate with the highest validation accuracy, mean over the tasks; None while a run of the grid is missing.

    Of equally good rates the one with the lowest validation loss is taken.
    """
    scored = []
    for rate in rates:
        records = [store.get(RunSpec(task, size, method, rate, seed)) for task in tasks]
        if any(record is None for record in records):
            return None
        found = [record for record in records if record is not None]
        accuracy = fmean(record["validation_score"] for record in found)
        scored.append((accuracy, -fmean(record["validation_loss"] for record in found), rate))
    return max(scored)[2]


def run_all(campaigns: Iterable[Campaign], store: RunStore, models: Path, *, workers: int, console: Console) -> None:
    """Do all runs that the store lacks, campaign after campaign.

    Ctrl-C ends it; what is written stays, and the next call goes on from there.
    """
    progress = Progress(
        TextColumn("{task.description:<52}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console,
    )  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool, progress:
        for campaign in campaigns:
            while specs := campaign.to_do(store):
                bar = progress.add_task(f"{campaign.methods[0]} … {len(campaign.sizes)} sizes", total=len(specs))
                try:
                    for spec, record in _finished(pool, specs, models, ahead=2 * workers):
                        store.add(spec, record)
                        progress.update(bar, advance=1, description=f"{spec.title}: {record['test_score']:.3f}")
                except KeyboardInterrupt:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                progress.remove_task(bar)


def _finished(pool: ProcessPoolExecutor, specs: Sequence[RunSpec], models: Path, *, ahead: int) -> Any:
    """Yield each run with its record, in the order in which they finish."""
    waiting = list(reversed(specs))
    running: dict[Future[dict[str, Any]], RunSpec] = {}
    while waiting or running:
        while waiting and len(running) < ahead:
            spec = waiting.pop()
            running[pool.submit(_run, spec, models)] = spec
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _run(spec: RunSpec, models: Path) -> dict[str, Any]:
    import warnings

    from benchmarks.quality.train_run import train_run

    warnings.simplefilter("ignore")  # PEFT's and torch's advice, once for every run
    return train_run(spec, models)
