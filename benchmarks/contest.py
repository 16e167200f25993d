"""The frame of every table of speeds: contestants in processes of their own, on the same cores, in alternating order.

A contestant is a command, which may belong to another environment (:mod:`benchmarks.peers`). It reads its job as JSON from
stdin and prints its report as the last line of stdout: ``{"figures": {column: value}}`` and whatever else a table records.
A contestant that cannot run keeps its row, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from benchmarks.results import RESULTS, environment, write_result
from rmlora_deploy.bench.machine import OthersWatch, pin, usable_cores

__all__ = [
    "QUICK_RESULTS", "ROOT", "THREADS", "Contestant", "ContestantError", "Table", "make_parser", "measure", "pinned", "print_table",
    "run_worker", "save_table", "settle", "summarize", "take_turns", "worker",
]  # fmt: skip

ROOT = Path(__file__).parents[1]
QUICK_RESULTS = ROOT / "build" / "speed-quick"
"""Where ``--quick`` writes, so that rough figures never replace the committed ones."""
THREADS = 2

Report = dict[str, Any]
Run = TypeVar("Run")
Kind = Literal["ours", "peer", "floor"]


class ContestantError(Exception):
    """A contestant could not be measured; the message is the reason."""


@dataclass(frozen=True)
class Contestant:
    """One row of a table."""

    name: str
    command: Sequence[str] = ()
    job: Mapping[str, Any] = field(default_factory=dict)
    """What the command reads from stdin."""
    kind: Kind = "ours"
    group: str = ""
    """Only contestants of the same group are compared: "fp32", "int8", …"""
    missing: str | None = None
    """Why it cannot be measured here; None if it can."""
    threads: int = THREADS
    quick: bool = True
    """Whether ``--quick`` measures it too."""
    wall: str | None = None
    """Column of the whole process's wall time, for what starts from nothing."""


@dataclass(frozen=True)
class Table:
    """What a table measures, for the page and the results file."""

    name: str
    """Of the results file."""
    title: str
    unit: str
    reference: str
    """The contestant that ratios refer to."""
    columns: Sequence[str] = ()
    """Figures of a report, in the order of the table."""
    better: Literal["lower", "higher"] = "lower"
    note: str = ""
    """What a reader must know to read the figures."""
    judged: Sequence[str] = ()
    """Columns in which contestants are compared; empty: all of them."""
    axis: str = ""
    """What the columns count, if they are numbers along an axis; such a table is plotted as curves."""


def make_parser(description: str | None, *, rounds: int = 5, seconds: float = 0.6) -> argparse.ArgumentParser:
    """Return a parser of the options that every table has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and sizes; writes to build/speed-quick")
    parser.add_argument("--rounds", type=int, help=f"turns of each contestant (default {rounds}, quick 1)")
    parser.add_argument("--seconds", type=float, help=f"time on each figure in a turn (default {seconds}, quick 0.15)")
    parser.add_argument("--only", action="append", metavar="TEXT", help="measure contestants whose name contains TEXT")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "speed", help="keeps models (default %(default)s)"
    )
    parser.set_defaults(full=(rounds, seconds))
    return parser


def settle(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the rounds and seconds that were not given."""
    rounds, seconds = (1, 0.15) if options.quick else options.full
    options.rounds = options.rounds or rounds
    options.seconds = options.seconds or seconds
    return options


def worker(module: str, *words: str, python: str | Path = sys.executable) -> tuple[str, ...]:
    """Return the command of a worker in ``benchmarks.workers``."""
    return (str(python), "-m", f"benchmarks.workers.{module}", *words)


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process on ``cores`` meanwhile; processes started in this time stay there."""
    own = usable_cores()
    pin(cores)
    try:
        yield
    finally:
        pin(own)


def take_turns(
    names: Sequence[str], rounds: int, run: Callable[[str], Run], on_turn: Callable[[str, Run], None] = lambda *_: None
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Run each contestant once a round, in one order in one round and in the reverse order in the next.

    A contestant that raises :class:`ContestantError` is left out of the following rounds.

    Returns:
        Name → what its runs returned, one for each round; and name → reason of those that failed.
    """
    runs: dict[str, list[Run]] = {name: [] for name in names}
    failures: dict[str, str] = {}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            if name in failures:
                continue
            try:
                runs[name].append(run(name))
            except ContestantError as error:
                failures[name] = str(error)
                del runs[name]
            else:
                on_turn(name, runs[name][-1])
    return runs, failures


def run_worker(contestant: Contestant, *, more: Mapping[str, Any] | None = None, timeout: float = 1800) -> Report:
    """Run a contestant in a new process and return its report, with the share of other programs added.

    Args:
        contestant: whose command is run.
        more: added to its job.
        timeout: seconds until it is given up.

    Raises:
        ContestantError: its process died, took too long or printed no report.
    """
    cores = usable_cores()[: contestant.threads]
    threads = str(len(cores))
    environ = {
        **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("", "converters", "deploy")),
    }  # fmt: skip
    others, before, start = OthersWatch(cores), _children_seconds(), time.perf_counter()
    with pinned(cores):
        try:
            done = subprocess.run(
                contestant.command, input=json.dumps({"threads": len(cores), **contestant.job, **(more or {})}),
                capture_output=True, text=True, cwd=ROOT, env=environ, timeout=timeout, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ContestantError(str(error).replace(f"{ROOT}/", "")) from error
    wall = time.perf_counter() - start
    if done.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        raise ContestantError(_last_words(done))
    own = (_children_seconds() - before) / (wall * len(cores))
    share = others.share()
    report: Report = json.loads(lines[-1])
    if contestant.wall is not None:
        report["figures"][contestant.wall] = 1e3 * wall
    report["others_share"] = None if share is None else max(0.0, share - own)
    return report


def measure(
    contestants: Sequence[Contestant],
    options: argparse.Namespace,
    table: Table,
    *,
    last: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Run the contestants in turns and return a row for each, the missing ones included, in their order.

    ``last`` is added to the jobs of the last round, for what is to be done only once.
    """
    by_name = {item.name: item for item in contestants}
    assert len(by_name) == len(contestants), "two contestants have the same name"
    skipped = {item.name: reason for item in contestants if (reason := _why_not(item, options)) is not None}
    turns = dict.fromkeys(by_name, 0)

    def run(name: str) -> Report:
        turns[name] += 1
        return run_worker(by_name[name], more=last if turns[name] == options.rounds else None)

    runs, failures = take_turns(
        [name for name in by_name if name not in skipped],
        options.rounds,
        run,
        lambda name, report: print(f"  {name}: {_show(report['figures'])}", file=sys.stderr, flush=True),
    )
    return summarize(contestants, runs, {**failures, **skipped}, table)


def _why_not(contestant: Contestant, options: argparse.Namespace) -> str | None:
    if contestant.missing is not None:
        return contestant.missing
    if options.quick and not contestant.quick:
        return "left out by --quick"
    if options.only and not any(text in contestant.name for text in options.only):
        return "left out by --only"
    return None


def summarize(
    contestants: Sequence[Contestant],
    runs: Mapping[str, Sequence[Report]],
    reasons: Mapping[str, str],
    table: Table,
) -> list[dict[str, Any]]:
    """Return a row for each contestant: medians and ranges of its figures, and of their ratios within each round."""
    reference = runs.get(table.reference, ())
    rows = []
    for item in contestants:
        row: dict[str, Any] = {"name": item.name, "kind": item.kind, "group": item.group}
        if item.name not in runs:
            rows.append({**row, "not_measured": reasons[item.name]})
            continue
        reports = runs[item.name]
        figures = {
            column: _figure(
                [report["figures"][column] for report in reports],
                [report["figures"][column] for report in reference if column in report["figures"]],
            )
            for column in reports[0]["figures"]
        }
        shares = [report["others_share"] for report in reports if report.get("others_share") is not None]
        more = {key: value for key, value in reports[-1].items() if key not in ("figures", "others_share")}
        rows.append({**row, **more, "others_share": max(shares, default=None), "figures": figures})
    return rows


def _figure(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    figure: dict[str, Any] = {
        "median": statistics.median(values),
        "range": [min(values), max(values)],
        "rounds": values,
    }
    ratios = [value / other for value, other in zip(values, reference, strict=False) if other]
    if ratios:
        figure |= {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
    return figure


def save_table(table: Table, rows: Sequence[Mapping[str, Any]], options: argparse.Namespace, **more: Any) -> Path:
    """Write the results file of a table, print the table, and return the file's path."""
    columns = list(table.columns) or list(dict.fromkeys(name for row in rows for name in row.get("figures", ())))
    value = {
        "table": {**asdict(table), "columns": columns},
        "environment": environment(),
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "threads": min(THREADS, len(usable_cores())), "quick": options.quick},
        **more,
        "rows": list(rows),
    }  # fmt: skip
    path = write_result(table.name, value, QUICK_RESULTS if options.quick else RESULTS)
    print_table(value)
    print(path)
    return path


def print_table(result: Mapping[str, Any]) -> None:
    """Print the medians and ratios of a results file, or why a row has none."""
    unit, columns = result["table"]["unit"], result["table"]["columns"]
    width = max(len(row["name"]) for row in result["rows"])
    print(f"{result['table']['title']} ({unit}; × {result['table']['reference']})")
    for row in result["rows"]:
        if "not_measured" in row:
            print(f"{row['name']:{width}}  not measured: {row['not_measured']}")
            continue
        figures = [row["figures"].get(column) for column in columns]
        cells = [_cell(figure) if figure else f"{'–':>17}" for figure in figures]
        print(f"{row['name']:{width}}  {'  '.join(cells)}")


def _cell(figure: Mapping[str, Any]) -> str:
    ratio = f"× {figure['ratio']:.2f}" if "ratio" in figure else ""
    return f"{figure['median']:9.2f} {ratio:>7}"


def _show(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _last_words(process: subprocess.CompletedProcess[str]) -> str:
    if process.returncode < 0:
        return f"its process ended with {signal.Signals(-process.returncode).name}"
    lines = process.stderr.strip().splitlines()
    said = lines[-1].strip() if lines else f"exit code {process.returncode}"
    return f"its process failed: {said.replace(f'{ROOT}/', '')[:300]}"  # the results name no path of this machine
