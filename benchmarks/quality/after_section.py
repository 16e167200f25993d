"""The section of docs/evidence.md about what compression and quantization leave of an adapter."""

from __future__ import annotations

from statistics import fmean

from benchmarks.quality.methods import METHODS
from benchmarks.quality.store import RunStore

__all__ = ["after_training_section"]


def after_training_section(store: RunStore) -> str:
    """Return the section; empty if nothing is measured."""
    methods = list(dict.fromkeys(spec.method for spec in store))
    if not methods:
        return ""
    first = store[next(iter(store))]
    tasks = ", ".join(dict.fromkeys(spec.task for spec in store))
    seeds = len({spec.seed for spec in store})
    titles = " | ".join(METHODS[name].title for name in methods)
    lines = [
        "## After training\n",
        f"Does the higher intrinsic dimension pay once training is over? Test accuracy in percent, mean over {tasks} with 1,000 "
        f"training examples and {seeds} seeds, after `compress` to fewer directions and after `export` in lower precisions "
        "(`python -m benchmarks.quality.after_training`).\n",
        f"| adapter | bytes of the factors | {titles} |",
        "|---|---|" + "---|" * len(methods),
    ]
    for rank, values in first["ranks"].items():
        shown = " | ".join(f"{_mean(store, name, 'ranks', rank):.1f}" for name in methods)
        lines.append(f"| rank {rank} | {values['bytes']:,} | {shown} |")
    lines += ["", f"| merged and exported | bytes of the graph | {titles} |", "|---|---|" + "---|" * len(methods)]
    for precision, values in first["precisions"].items():
        shown = " | ".join(f"{_mean(store, name, 'precisions', precision):.1f}" for name in methods)
        lines.append(f"| {precision} | {values['bytes']:,} | {shown} |")
    return "\n".join(lines) + "\n"


def _mean(store: RunStore, method: str, kind: str, key: str) -> float:
    return 100 * fmean(store[spec][kind][key]["score"] for spec in store if spec.method == method)
