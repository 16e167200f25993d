"""Table: the time from an adapter's directory to the first answer with it, in a running process and from nothing.

The adapters are PEFT packages of rank 8 on all 36 projections of MiniLM, with a head; their files are in the page cache.

    python -m benchmarks.first_answer           # writes benchmarks/results/first_answer.json, about 6 minutes
    python -m benchmarks.first_answer --quick   # build/speed-quick/first_answer.json
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.assets import minilm
from benchmarks.branches import ADAPTERS
from benchmarks.contest import Contestant, Kind, Table, make_parser, measure, save_table, settle, worker
from benchmarks.peers import missing, python_of
from benchmarks.speed_models import mixed_bundles

COLUMN = "first answer"
OURS = "ours, registered in a running graph"
TEXT = "Congratulations! You have won a free holiday, call now to claim"
RUNNING, COLD, NEW_FILE = "running process", "from nothing", "new model file"
WAYS: tuple[tuple[str, str, Kind, str], ...] = (
    (OURS, "ours running", "ours", RUNNING),
    ("ours, in the bundle already", "ours known", "ours", ""),
    ("PEFT, load_adapter in a running model", "peft running", "peer", RUNNING),
    ("floor: reading the adapter's file", "files", "floor", RUNNING),
    ("ours, process start and bundle", "ours from nothing", "ours", COLD),
    ("PEFT, process start, base and adapter", "peft from nothing", "peer", COLD),
    ("floor: process start, reading base and adapter", "python", "floor", COLD),
    ("ours, adapter add, then process start", "add", "ours", NEW_FILE),
    ("ours, export merged, then process start", "export", "ours", NEW_FILE),
)
"""Row, way of the worker, kind and group."""


def main() -> None:
    """Make adapters and bundles, measure and write the table."""
    options = settle(make_parser(__doc__, rounds=3).parse_args())
    bundles = mixed_bundles(options.work)
    growing = options.work / "growing"
    shutil.rmtree(growing, ignore_errors=True)
    shutil.copytree(bundles / "branches", growing)
    table = Table(
        "first_answer",
        "From an adapter's directory to the first answer",
        "ms",
        OURS,
        [COLUMN],
        note="One text of 14 tokens. In a running process: the median of eight adapters, one after the other.",
    )
    save_table(table, measure(list(list_contestants(bundles, growing)), options, table), options)


def list_contestants(bundles: Path, growing: Path) -> Iterator[Contestant]:
    """Yield ours, PEFT's ways, the floors, and Optimum's export of the merged model."""
    job = {
        "adapters": [str(bundles / f"a{number}") for number in range(ADAPTERS)],
        "bundle": str(bundles / "branches"),
        "name": "a0",
        "base": str(minilm()),
        "text": TEXT,
    }
    for name, way, kind, group in WAYS:
        wall = COLUMN if group in (COLD, NEW_FILE) else None
        more = {"bundle": str(growing)} if way == "add" else {}
        quick = kind != "floor" and way != "add"
        command = worker("first_answer")
        yield Contestant(name, command, {**job, "way": way, **more}, kind, group, quick=quick, wall=wall)
    command = worker("export_first_answer", python=python_of("optimum"))
    name = "PEFT merge, Optimum export, onnxruntime"
    yield Contestant(name, command, job, "peer", NEW_FILE, missing("optimum"), quick=False, wall=COLUMN)


if __name__ == "__main__":
    main()
