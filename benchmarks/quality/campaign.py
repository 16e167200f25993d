"""Which runs are still to do, and doing them: in worker processes, each record written as soon as it is there."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.quality.store import RunStore
from benchmarks.quality.study import LEARNING_RATES, RunSpec, sizes_of

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
                for task in self.tasks:
                    if size in sizes_of(task):
                        specs += self._runs_of(store, task, size, method)
        return [spec for spec in dict.fromkeys(specs) if spec not in store]

    def _runs_of(self, store: RunStore, task: str, size: int, method: str) -> list[RunSpec]:
        rate = chosen_learning_rate(store, task, size, method, self.seeds[0], self.learning_rates)
        if rate is None:
            return [RunSpec(task, size, method, rate, self.seeds[0]) for rate in self.learning_rates]
        rate = round(rate * self.rate_factor, 10)
        return [RunSpec(task, size, method, rate, seed, self.label_noise) for seed in self.seeds]


def chosen_learning_rate(
    store: RunStore, task: str, size: int, method: str, seed: int, rates: Sequence[float]
) -> float | None:
    """Return the rate with the best validation score; None while a run of the grid is missing.

    Of equally good rates the one with the lowest validation loss is taken.
    """
    records = [(rate, store.get(RunSpec(task, size, method, rate, seed))) for rate in rates]
    scored = [(r["validation_score"], -r["validation_loss"], rate) for rate, r in records if r is not None]
    return max(scored)[2] if scored and len(scored) == len(records) else None


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


def _finished(
    pool: ProcessPoolExecutor, specs: Sequence[RunSpec], models: Path, *, ahead: int
) -> Iterator[tuple[RunSpec, dict[str, Any]]]:
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
