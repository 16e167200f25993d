"""Turning the runs into docs/evidence.md and its plots. Every figure on the page is computed here; none is typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

from benchmarks.markdown import markdown_table
from benchmarks.quality.after_section import after_training_section
from benchmarks.quality.campaign import chosen_learning_rate
from benchmarks.quality.comparison import Comparison, Difference, compare
from benchmarks.quality.methods import HEADLINE, MASKED, METHODS
from benchmarks.quality.plan import NOISES, RATE_FACTORS, ROBUSTNESS_TASKS
from benchmarks.quality.plots import draw_differences
from benchmarks.quality.store import RunStore
from benchmarks.quality.study import LEARNING_RATES, REPORTED, SEEDS, SELECTION, SIZES, VALIDATION, RunSpec, sizes_of
from benchmarks.quality.verdict import first_paragraph
from rmlora.storage import atomic_file

__all__ = ["write_page"]

_DOCS = Path("docs")
_DEFAULT, _PLAIN = "rmlora", "lora"
_MASKED, _EQUAL_BUDGET = "rmlora-k4", "lora-r4"


Chosen = Mapping[tuple[str, int, str], float]
"""(task, size, method) → the learning rate at which the method is compared."""


def write_page(store: RunStore, directory: Path | None = None) -> Path:
    """Write the page and its plots, and return its path.

    Args:
        store: the runs.
        directory: where to; None is docs/.
    """
    target = directory or _DOCS
    chosen = chosen_rates(store)
    result = compare(store, _DEFAULT, _PLAIN, chosen, SEEDS)
    masked = compare(store, _MASKED, _EQUAL_BUDGET, chosen, SEEDS)
    planned = sum(len(sizes_of(task)) for task in REPORTED) * len(SEEDS)
    parts = ["# Evidence: does RM-LoRA generalize better?\n", _GENERATED]
    if not result.cells:
        parts.append("Nothing is measured yet: run  make bench-quality\n")
    else:
        images = target / "images" / "evidence"
        images.mkdir(parents=True, exist_ok=True)
        draw_differences([item for item in (result, masked) if item.cells], images / "differences.svg")
        parts += [
            first_paragraph(result, masked, planned=planned),
            "![RM-LoRA against plain LoRA, cell by cell](images/evidence/differences.svg)\n",
            _cells(store, chosen, result, masked),
            _by_rate(store),
            _methods(store, chosen),
            _robustness(store, chosen),
            after_training_section(RunStore(store.path.with_name("quality_after.jsonl"))),
            _selection(RunStore(store.path.with_name("quality_selection.jsonl"))),
            _how(store, chosen),
        ]
    with atomic_file(target / "evidence.md") as path:
        path.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return target / "evidence.md"


_GENERATED = "<!-- Written by  python -m benchmarks.quality  from benchmarks/results/quality.jsonl: do not edit. -->\n"


def chosen_rates(store: RunStore) -> Chosen:
    """Return (task, size, method) → the chosen learning rate, where the grid is complete.

    A quick study tries fewer rates; those that the first seed has run count as its grid.
    """
    tried: dict[tuple[str, int, str], list[float]] = {}
    for spec in store:
        if (
            spec.seed == SEEDS[0]
            and not spec.label_noise
            and spec.learning_rate in LEARNING_RATES
            and spec.task in REPORTED
        ):
            tried.setdefault((spec.task, spec.size, spec.method), []).append(spec.learning_rate)
    whole = max((len(rates) for rates in tried.values()), default=0)
    chosen = {
        (task, size, method): chosen_learning_rate(store, task, size, method, SEEDS[0], rates)
        for (task, size, method), rates in tried.items()
        if len(rates) == whole
    }
    return {cell: rate for cell, rate in chosen.items() if rate is not None}


def _cells(store: RunStore, chosen: Chosen, result: Comparison, masked: Comparison) -> str:
    about = (
        "## Cell by cell\n\n"
        "Test score in percent, mean over seeds: accuracy, for pairs Spearman's rank correlation. A difference is the mean over "
        "seeds of RM-LoRA minus the LoRA before it, on the same split with the same head and order of data, with its 95 % "
        "confidence interval; **bold** where the interval excludes zero.\n\n"
    )
    pairs = [(list(HEADLINE), result)] + [(list(MASKED), masked)] * bool(masked.cells)
    head = ["data", "training examples"]
    for names, _ in pairs:
        head += [*(METHODS[name].title for name in names), "difference"]
    found = [{(cell.task, cell.size): cell for cell in item.cells} for _, item in pairs]
    rows = []
    for task, size in sorted(set().union(*found), key=lambda cell: (list(REPORTED).index(cell[0]), cell[1])):
        row = [REPORTED[task].title, f"{size:,}"]
        for (names, _), cells in zip(pairs, found, strict=True):
            means = [mean_score(store, chosen, task, size, name) for name in names]
            row += ["" if mean is None else f"{mean:.1f}" for mean in means]
            row.append(_difference(cells[task, size]) if (task, size) in cells else "")
        rows.append(row)
    return about + markdown_table(head, rows) + "\n"


def _by_rate(store: RunStore) -> str:
    """Return how the score depends on the learning rate, from the runs with which the rates were chosen."""
    table = _rate_table(store, list(REPORTED), LEARNING_RATES)
    if not table:
        return ""
    return f"## By learning rate\n\nMean test score over the tasks at every rate of the grid, first seed.\n\n{table}\n"


def _selection(store: RunStore) -> str:
    """Return the runs on other data, from which the defaults were chosen; empty without any."""
    table = _rate_table(store, list(SELECTION), sorted({spec.learning_rate for spec in store}))
    if not table:
        return ""
    data = ", ".join(task.title for task in SELECTION.values())
    return (
        f"## How the defaults were chosen\n\nMean test score on {data}, first seed, with MiniLM. None of these is reported "
        f"above. [The method](method.md#presets) says what follows.\n\n{table}\n"
    )


def _rate_table(store: RunStore, tasks: Sequence[str], rates: Sequence[float]) -> str:
    """Return the mean over tasks for every size, method and rate of which all tasks have run; empty if there is none."""
    rows = []
    for size in SIZES:
        sized = [task for task in tasks if size in sizes_of(task)]
        for name, method in METHODS.items():
            row = []
            for rate in rates:
                records = [store.get(RunSpec(task, size, name, rate, SEEDS[0])) for task in sized]
                scores = [100 * record["test_score"] for record in records if record is not None]
                row.append(f"{fmean(scores):.1f}" if len(scores) == len(sized) else "")
            if any(row):
                rows.append([f"{size:,}", method.title, *row])
    return markdown_table(["training examples", "method", *(f"{rate:g}" for rate in rates)], rows) if rows else ""


def _methods(store: RunStore, chosen: Chosen) -> str:
    about = (
        "## All methods\n\n"
        "Difference of the test score to plain LoRA of rank 8 in percentage points, mean over the cells that both have run. "
        "The effective rank is the mean over all updates. [Speed](speed.md#training-step) has what a step costs.\n\n"
    )
    head = ["method", "cells", "over LoRA", "ahead · behind", "clearly better · worse", "effective rank"]
    rows = []
    for name in [name for name in METHODS if name != _PLAIN]:
        result = compare(store, name, _PLAIN, chosen, SEEDS)
        if result.cells:
            rows.append(
                [
                    METHODS[name].title,
                    str(len(result.cells)),
                    _difference(result),
                    f"{result.ahead} · {result.behind}",
                    f"{result.count('better')} · {result.count('worse')}",
                    _rank(store, chosen, name),
                ]
            )
    return about + markdown_table(head, rows) + "\n"


def _robustness(store: RunStore, chosen: Chosen) -> str:
    """Return the table of runs with wrong labels and with rates that are too high; empty if there are none."""
    about = (
        "## Wrong labels and rates that are too high\n\n"
        f"1,000 training examples of {', '.join(REPORTED[task].title for task in ROBUSTNESS_TASKS)}; mean test accuracy over "
        "tasks and seeds. Wrong labels are drawn once for each seed; the learning rate is the one chosen without them.\n\n"
    )
    changes = [("none", 0.0, 1.0)]
    changes += [(f"{noise:.0%} of the labels wrong", noise, 1.0) for noise in NOISES]
    changes += [(f"{factor:g} × the chosen rate", 0.0, factor) for factor in RATE_FACTORS]
    rows = []
    for title, noise, factor in changes:
        means = [_robust_mean(store, chosen, name, noise, factor) for name in HEADLINE]
        if None not in means:
            rows.append([title, *(f"{mean:.1f}" for mean in means)])
    if not any(row[0] != "none" for row in rows):
        return ""
    return about + markdown_table(["change", *(method.title for method in HEADLINE.values())], rows) + "\n"


def _robust_mean(store: RunStore, chosen: Chosen, method: str, noise: float, factor: float) -> float | None:
    """Return the mean test accuracy in percent over the robustness tasks; None if a task has no run."""
    means = []
    for task in ROBUSTNESS_TASKS:
        rate = chosen.get((task, 1000, method))
        if rate is None:
            return None
        records = [store.get(RunSpec(task, 1000, method, round(rate * factor, 10), seed, noise)) for seed in SEEDS]
        found = [100 * record["test_score"] for record in records if record is not None]
        if not found:
            return None
        means.append(fmean(found))
    return fmean(means)


def _how(store: RunStore, chosen: Chosen) -> str:
    """Return how the figures came about, with the chosen learning rates."""
    schedules = ", ".join(
        f"{size:,} examples for {schedule.epochs} epochs in batches of {schedule.batch}"
        for size, schedule in SIZES.items()
    )
    devices = ", ".join(sorted({str(store[spec]["device"]) for spec in store}))
    rates = ", ".join(f"{rate:g}" for rate in LEARNING_RATES)
    lines = [
        "## How it was measured\n",
        "`make bench-quality` repeats all of it, run by run, and continues where it was stopped. The runs are in "
        f"`benchmarks/results/quality.jsonl`: {len(store):,} of them, computed on {devices}.\n",
        "* **Models**: MiniLM-L6 (22.7 M) for texts, DINOv2-small (22 M) for images; every linear projection of the encoder "
        "is adapted, and a new head (with MiniLM a pooler too) is trained in full. PEFT and the transformers Trainer, AdamW "
        "without weight decay, linear decay after 6 % of warm-up, gradients clipped at 1, bf16 autocast.",
        f"* **Data**: repeated examples are removed before splitting. Test sets of {min(t.test for t in REPORTED.values()):,} "
        f"examples or more, {VALIDATION} for validation, the same for all sizes of a seed.",
        f"* **Steps**: {schedules} (fewer where the data end), for every method. The last checkpoint is tested.",
        f"* **Learning rates**: from {rates}, for each method, task and size the one with the best validation score of the "
        "first seed. The table shows their geometric mean over tasks.\n",
    ]
    rates_of = {name: [_rate(chosen, name, size) for size in SIZES] for name in METHODS}
    rows = [[METHODS[name].title, *cells] for name, cells in rates_of.items() if any(cells)]
    return "\n".join([*lines, markdown_table(["method", *(f"{size:,} examples" for size in SIZES)], rows)]) + "\n"


def _rate(chosen: Chosen, method: str, size: int) -> str:
    rates = [rate for (_, of, name), rate in chosen.items() if name == method and of == size]
    return f"{geometric_mean(rates):.1e}" if rates else ""


def mean_score(store: RunStore, chosen: Chosen, task: str, size: int, method: str) -> float | None:
    """Return the mean test accuracy over the seeds, in percent; None without a run."""
    records = _records(store, chosen, task, size, method)
    return 100 * fmean(record["test_score"] for record in records) if records else None


def _records(store: RunStore, chosen: Chosen, task: str, size: int, method: str) -> list[Mapping[str, Any]]:
    rate = chosen.get((task, size, method))
    if rate is None:
        return []
    found = [store.get(RunSpec(task, size, method, rate, seed)) for seed in SEEDS]
    return [record for record in found if record is not None]


def _rank(store: RunStore, chosen: Chosen, method: str) -> str:
    values = [
        record["effective_rank"]
        for task, size, name in chosen
        if name == method
        for record in _records(store, chosen, task, size, name)
        if record["effective_rank"] is not None
    ]
    return f"{fmean(values):.1f}" if values else ""


def _difference(result: Difference | Comparison) -> str:
    """Return ``+0.4 ± 0.9``, in bold where zero is outside."""
    text = f"{result.mean:+.1f}" + (f" ± {result.half_width:.1f}" if isfinite(result.half_width) else "")
    return f"**{text}**" if abs(result.mean) > result.half_width else text
