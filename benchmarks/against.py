"""Speed of this commit against another one: both run the same benchmarks in one go, taking turns, pair by pair.

    python -m benchmarks.against REVISION [--rounds 5] [--seconds 0.5] [--serve-rounds 2] [--serve-seconds 30]

Each revision is cloned and measured by its own ``benchmarks.branches`` and ``benchmarks.serving``, so the packages may have
moved between the two. Both clones use the environment that runs this command.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import environment, write_result

CONTESTANTS = ("merged", "no adapter", "one adapter", "one for each row", "each row at random")
"""Of ``benchmarks.branches``; their names are the same in both revisions."""
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure, print and write the ratios, this commit over the other one: above 1 is slower, for requests/s faster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what to compare with, as git names it")
    parser.add_argument("--only", action="append", choices=CONTESTANTS, help="measure just this contestant; repeatable")
    parser.add_argument("--name", default="against", help="of the results file (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="on every size in a turn (default %(default)s)")
    parser.add_argument("--serve-rounds", type=int, default=2, help="turns of the servers (default %(default)s)")
    parser.add_argument("--serve-seconds", type=float, default=30.0, help="load in a turn (default %(default)s)")
    parser.add_argument("--adapters", type=int, default=1000, help="of the server (default %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        trees = {"before": Path(scratch) / "before", "after": Path(scratch) / "after"}
        revisions = {"before": _git("rev-parse", options.revision), "after": _git("rev-parse", "HEAD")}
        for name, tree in trees.items():
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
            subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", revisions[name]], check=True)
        result = {
            "environment": environment(),
            "revisions": revisions,
            "branches": measure_branches(trees, options.only or CONTESTANTS, options.rounds, options.seconds),
            "serving": measure_serving(trees, options),
        }
    print(write_result(options.name, result))


def measure_branches(trees: dict[str, Path], names: Sequence[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Return a row for every contestant and size: milliseconds of both, and the ratio within pairs."""
    for tree in trees.values():
        program = "from pathlib import Path; from benchmarks.branches import make_bundles; make_bundles(Path('work'))"
        (tree / "work").mkdir()
        _python(tree, "-c", program)
    sizes = json.loads(_python(trees["after"], "-c", "from benchmarks.branches import *; print(SIZES)").replace("(", "[").replace(")", "]"))  # fmt: skip
    taken: dict[str, dict[str, list[list[float]]]] = {name: {name_of: [] for name_of in trees} for name in names}
    for number in range(rounds):
        for name in names:
            for tree in trees if number % 2 == 0 else reversed(trees):
                words = ("-m", "benchmarks.branches", "--worker", name, "--work", "work", "--seconds", str(seconds))
                taken[name][tree].append(json.loads(_python(trees[tree], *words).splitlines()[-1])["ms"])
        print(f"branches: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    rows = []
    for name, runs in taken.items():
        for number, (batch, tokens) in enumerate(sizes):
            before, after = ([turn[number] for turn in runs[tree]] for tree in ("before", "after"))
            rows.append({"name": name, "batch": batch, "tokens": tokens, **_compared(before, after)})
            print(f"{name:24} {batch} × {tokens:<4} {rows[-1]['ratio']:.3f}", flush=True)
    return rows


def measure_serving(trees: dict[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return requests a second of both revisions' servers, merged and with adapters."""
    rates: dict[str, dict[str, list[float]]] = {name: {tree: [] for tree in trees} for name in ("merged", "branches")}
    for tree in trees.values():
        (tree / "served").mkdir()
    for number in range(options.serve_rounds):
        for tree in trees if number % 2 == 0 else reversed(trees):
            words = ["-m", "benchmarks.serving", "--rounds", "1", "--seconds", str(options.serve_seconds)]
            _python(trees[tree], *words, "--adapters", str(options.adapters), "--work", "served")
            runs = json.loads((trees[tree] / "benchmarks" / "results" / "serving.json").read_text())["runs"]
            for name, values in rates.items():
                values[tree] += [run["requests_per_second"] for run in runs[name]]
        print(f"serving: round {number + 1} of {options.serve_rounds}", file=sys.stderr, flush=True)
    rows = [
        {"name": name, **_compared(values["before"], values["after"])}
        for name, values in rates.items()
        if values["before"]
    ]
    for row in rows:
        print(f"requests/s, {row['name']:12} {row['ratio']:.3f}", flush=True)
    return rows


def _compared(before: list[float], after: list[float]) -> dict[str, Any]:
    ratios = [mine / other for mine, other in zip(after, before, strict=True)]
    return {"before": before, "after": after, "ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}


def _python(tree: Path, *words: str) -> str:
    """Run a program of ``tree`` in it, with its own packages, and return what it printed."""
    path = os.pathsep.join(str(tree / folder) for folder in ("", "converters", "deploy"))
    environ = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environ, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
