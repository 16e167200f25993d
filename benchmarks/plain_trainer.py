"""Whether ``rmlora-deploy train`` reaches what a plain script of PEFT and transformers' ``Trainer`` reaches with the same settings.

Four tasks on MiniLM-L6: the similarity of two sentences as a number (STS Benchmark), as one of three classes, what fills the
slots of sentences to a home, and answers to questions about such sentences. Each is trained by the plain script (``benchmarks/plain_script.py``), by ``train`` as plain
LoRA, and by ``train`` with the defaults of RM-LoRA, on the same rows with the same seeds. A seed decides the split, the
new weights, the order of the data and dropout.

    python -m benchmarks.plain_trainer           # benchmarks/results/plain_trainer.json, about 25 minutes of one core
    python -m benchmarks.plain_trainer --resume  # goes on after an interruption
    python -m benchmarks.plain_trainer --quick   # build/plain-trainer-quick/plain_trainer.json, two minutes
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.assets import minilm
from benchmarks.plain_script import (
    ANSWERS,
    ENTITIES,
    PAIR_CLASSES,
    SIMILARITY,
    PlainTask,
    Recipe,
    read_rows,
    train_plainly,
)
from benchmarks.quality.comparison import Difference
from benchmarks.realdata import DATASETS, QUESTIONS, TAGGED, Example, write_parts
from benchmarks.results import RESULTS, environment, write_result
from rmlora.config import PRESETS, RMLoRAConfig
from rmlora.errors import InputError
from rmlora.quiet import quiet_transformers
from rmlora_deploy import train

__all__ = ["TASKS", "Task", "band", "banded_pairs", "finished_runs", "short_pairs", "summarize"]

PLAIN, LORA, RMLORA = "plain PEFT + Trainer", "train --method lora", "train"
_QUICK_RESULTS = Path("build") / "plain-trainer-quick"
_SHORT = 80
"""Characters of a pair at most: what a core trains in less than a minute."""


@dataclass(frozen=True)
class Plan:
    """How much is trained, and where results are written."""

    train: int
    validation: int
    test: int
    """Rows of each part."""
    seeds: tuple[int, ...]
    target: Path
    epochs: float | None = None
    """In place of each task's own."""

    def fit(self, task: Task) -> Task:
        """Return ``task`` with the epochs of this plan."""
        epochs = self.epochs or task.recipe.epochs
        return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, epochs=epochs))


_FULL = Plan(600, 150, 500, (0, 1, 2), RESULTS)
_QUICK = Plan(96, 40, 60, (0,), _QUICK_RESULTS, epochs=1)


@dataclass(frozen=True)
class Task:
    """One task of the table."""

    dataset: str
    read: Callable[[], list[Example]]
    plain: PlainTask
    recipe: Recipe
    kind: str = "text-classification"
    problem_type: str | None = None

    @property
    def metric(self) -> str:
        """The one that is compared."""
        return self.plain.metrics[0]


def band(grade: float) -> str:
    """Return a class for a similarity of 0 to 5: ``different`` below 2, ``related`` below 4, else ``same``."""
    return "different" if grade < 2 else "related" if grade < 4 else "same"


def short_pairs() -> list[Example]:
    """Return the pairs of STS Benchmark with few characters, graded 0 to 5."""
    return [example for example in DATASETS["stsb"]() if len("".join(example.input)) <= _SHORT]


def banded_pairs() -> list[Example]:
    """Return the same pairs with one of three classes."""
    return [example._replace(label=band(float(example.label))) for example in short_pairs()]


TASKS: Mapping[str, Task] = {
    "similarity": Task("stsb", short_pairs, SIMILARITY, Recipe(max_length=48), problem_type="regression"),
    "pair classes": Task("stsb", banded_pairs, PAIR_CLASSES, Recipe(max_length=48)),
    "entities": Task("slots", TAGGED["slots"], ENTITIES, Recipe(max_length=48), kind="token-classification"),
    "answers": Task(
        "questions", QUESTIONS["questions"], ANSWERS, Recipe(max_length=256, epochs=6), kind="question-answering"
    ),
}
"""Name → what is trained."""


def main() -> None:
    """Train everything; write the file whenever a seed of a task is finished, and print all runs and comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help=f"one seed, few rows, one epoch; writes to {_QUICK_RESULTS}"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (default %(default)s); set OMP_NUM_THREADS too")
    parser.add_argument(
        "--resume", action="store_true", help="keep what an interrupted command with these settings wrote"
    )
    options = parser.parse_args()
    plan = _QUICK if options.quick else _FULL
    runs = finished_runs(plan.target / "plain_trainer.json", _report(plan, [])) if options.resume else []
    done = {(run["task"], run["seed"]) for run in runs}
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        left = [(name, seed) for seed in plan.seeds for name in TASKS if (name, seed) not in done]
        cells = [pool.submit(_run_cell, *cell, plan) for cell in left]
        for cell in as_completed(cells):
            runs += cell.result()
            for run in runs[-len(METHODS) :]:
                print(json.dumps(run), flush=True)
            write_result("plain_trainer", _report(plan, runs), plan.target)
    for row in summarize(runs):
        print(json.dumps(row))


def finished_runs(file: Path, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the runs in a results file if its rows, settings and packages are those of ``report``; none without the file.

    Raises:
        InputError: they are others.
    """
    if not file.exists():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    for key in ("rows", "settings"):
        if found[key] != json.loads(json.dumps(report[key])):
            raise InputError(f"{file} was measured with other {key}: leave --resume out.")
    if found["environment"]["packages"] != report["environment"]["packages"]:
        raise InputError(f"{file} was measured with other versions of packages: leave --resume out.")
    runs: list[dict[str, Any]] = found["runs"]
    return runs


def _run_cell(name: str, seed: int, plan: Plan) -> list[dict[str, Any]]:
    """Train one task with one seed by every method, on the same files."""
    task, runs = plan.fit(TASKS[name]), []
    with tempfile.TemporaryDirectory() as directory, quiet_transformers():
        sizes = {"train": plan.train, "validation": plan.validation, "test": plan.test}
        data = write_parts(task.read(), task.dataset, Path(directory) / "data", **sizes, seed=seed)
        for number, (method, run) in enumerate(METHODS.items()):
            started = time.perf_counter()
            measured = run(task, data, Path(directory) / f"run-{number}", seed)
            seconds = round(time.perf_counter() - started, 1)
            runs.append({"task": name, "method": method, "seed": seed, **measured, "seconds": seconds})
    return runs


def _plainly(task: Task, data: Path, work: Path, seed: int) -> dict[str, Any]:
    return train_plainly(task.plain, data, minilm(), work, task.recipe, seed)


def _with_preset(preset: str) -> Callable[[Task, Path, Path, int], dict[str, Any]]:
    """Return a function that trains by this project, with RM-LoRA's settings of a preset."""

    def run(task: Task, data: Path, work: Path, seed: int) -> dict[str, Any]:
        recipe = task.recipe
        labels = None if task.kind == "question-answering" else tuple(task.plain.label_names(read_rows(data)))
        config = RMLoRAConfig(**{**PRESETS[preset], "rank": recipe.rank, "alpha": recipe.alpha, "seed": seed})
        result = train(
            minilm(), data / "train.jsonl", work, config=config, task=task.kind, seed=seed,
            validation=str(data / "validation.jsonl"), test=str(data / "test.jsonl"),
            problem_type=task.problem_type, best_metric=task.metric, max_length=recipe.max_length,
            learning_rate=recipe.learning_rate, warmup_ratio=recipe.warmup_ratio, epochs=recipe.epochs,
            batch_size=recipe.batch_size, labels=labels,
        )  # fmt: skip
        return {
            "test": {name: result.metrics["test"][name] for name in task.plain.metrics},
            "trainable_parameters": result.trainable_parameters,
            "steps": result.steps,
        }

    return run


METHODS: Mapping[str, Callable[[Task, Path, Path, int], dict[str, Any]]] = {
    PLAIN: _plainly,
    LORA: _with_preset("lora"),
    RMLORA: _with_preset("default"),
}
"""Name → how a task is trained and measured."""


def summarize(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for every task and method the metric's mean and spread, and its difference from the plain script, paired by seed.

    Figures are points: 100 times the metric. Tasks without runs are left out.
    """
    rows = []
    for task in (name for name in TASKS if any(run["task"] == name for run in runs)):
        metric = TASKS[task].metric
        scores = {
            method: {run["seed"]: 100 * run["test"][metric] for run in runs if (run["task"], run["method"]) == (task, method)}
            for method in METHODS
        }  # fmt: skip
        for method, found in scores.items():
            row = {
                "task": task,
                "metric": metric,
                "method": method,
                "seeds": sorted(found),
                **_spread([*found.values()]),
            }
            rows.append(row if method == PLAIN else {**row, "minus_plain": _difference(task, found, scores[PLAIN])})
    return rows


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def _difference(task: str, found: Mapping[int, float], plain: Mapping[int, float]) -> dict[str, Any]:
    """Return the paired difference, with half of its 95 % interval; with a single seed there is none."""
    values = tuple(round(found[seed] - plain[seed], 4) for seed in sorted(found))  # less is rounding in float32
    difference = Difference(task, _FULL.train, values)
    several = len(difference.values) > 1
    return {
        "values": list(difference.values),
        "mean": difference.mean,
        "half_width_95": difference.half_width if several else None,
        "verdict": difference.verdict if several else None,
    }


def _report(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "environment": environment(),
        "base": "all-MiniLM-L6-v2",
        "rows": {"train": plan.train, "validation": plan.validation, "test": plan.test},
        "seeds": list(plan.seeds),
        "settings": {name: dataclasses.asdict(plan.fit(task).recipe) for name, task in TASKS.items()},
        "unit": "points: 100 times the metric",
        "summary": summarize(runs),
        "runs": sorted(runs, key=lambda run: ([*TASKS].index(run["task"]), run["seed"])),
    }


if __name__ == "__main__":
    main()
