"""The section of docs/evidence.md about what compression and quantization leave of an adapter."""

from __future__ import annotations

from statistics import fmean

from benchmarks.markdown import markdown_table
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
    titles = [METHODS[name].title for name in methods]
    about = (
        "## After training\n\n"
        f"Does the higher intrinsic dimension pay once training is over? Test accuracy in percent, mean over {tasks} with 1,000 "
        f"training examples and {seeds} seeds, after `compress` to fewer directions and after `export` in lower precisions "
        "(`python -m benchmarks.quality.after_training`)."
    )
    ranks = [
        [f"rank {key}", f"{values['bytes']:,}", *(_mean(store, name, "ranks", key) for name in methods)]
        for key, values in first["ranks"].items()
    ]
    precisions = [
        [key, f"{values['bytes']:,}", *(_mean(store, name, "precisions", key) for name in methods)]
        for key, values in first["precisions"].items()
    ]
    tables = [
        markdown_table(["adapter", "bytes of the factors", *titles], ranks),
        markdown_table(["merged and exported", "bytes of the graph", *titles], precisions),
    ]
    return "\n\n".join([about, *tables]) + "\n"


def _mean(store: RunStore, method: str, kind: str, key: str) -> str:
    """Return the mean score of a method in percent."""
    return f"{100 * fmean(store[spec][kind][key]['score'] for spec in store if spec.method == method):.1f}"
