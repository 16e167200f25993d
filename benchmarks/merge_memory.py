"""Memory and time of merging an adapter into a checkpoint far larger than the memory used.

Builds a sharded bfloat16 checkpoint with the shapes of Llama-7B (and two more layers, to reach 14 GB) and random weights,
and a rank-16 adapter on all of its projections; merges them in a new process and records the peak memory of that process.
Some rows of the result are compared with the sum computed here.

    python -m benchmarks.merge_memory --work /some/disk       # needs about 28 GB there, removed afterwards
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.merge_inputs import LLAMA_7B, RANK, build_adapter, build_base, spot_check
from benchmarks.results import environment, write_result
from rmlora.package import load_package

LAYERS = 34


def main() -> None:
    """Build, merge, check and report; or, with ``--worker``, be the process that merges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="directory to work in (default: the system's temporary directory)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="layers, 0.4 GB each (default %(default)s)")
    parser.add_argument("--worker", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        merge_here(*arguments.worker)
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as directory:
        result = measure(Path(directory), arguments.layers)
    print(write_result("merge_memory", result))
    print(
        f"{result['checkpoint_gb']:.1f} GB merged in {result['seconds']:.0f} s with {result['peak_mb']:.0f} MB at the most"
    )


def measure(work: Path, layers: int) -> dict[str, Any]:
    """Return the figures of one merge."""
    base, adapter, merged = work / "base", work / "adapter", work / "merged"
    nbytes = build_base(base, LLAMA_7B, layers)
    build_adapter(adapter, LLAMA_7B, layers)
    command = [sys.executable, "-m", "benchmarks.merge_memory", "--worker", str(base), str(adapter), str(merged)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    checked = spot_check(base, adapter, merged, LLAMA_7B, layers)
    shutil.rmtree(merged)
    return {
        "environment": environment(),
        "settings": {
            "layers": layers,
            "rank": RANK,
            "modules": layers * len(LLAMA_7B.projections),
            "dtype": "bfloat16",
        },
        "checkpoint_gb": nbytes / 1e9,
        "rows_checked": checked,
        **figures,
    }


def merge_here(base: Path, adapter: Path, output: Path) -> None:
    """Merge, and print seconds, peak memory and the largest rounding loss as JSON."""
    from rmlora_converters.checkpoint_merge import merge_checkpoint

    started = time.perf_counter()
    report = merge_checkpoint(base, load_package(adapter), output)
    figures = {
        "seconds": time.perf_counter() - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worst_loss": report.worst_loss,
        "shards": report.shards,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
