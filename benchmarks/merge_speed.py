"""Time of merging an adapter into a bfloat16 checkpoint, beside a plain copy of the same files and beside other tools.

Builds a checkpoint with the shapes of TinyLlama (26 layers, 2.55 GB) and a rank-16 adapter on all projections. Every merge is a
process of its own, on the cores that this process may use; a round runs each of them once, in turn, and a run ends when its
output is on the disk. Floors stand beside the times: the copy, and the product B · A alone.

    python -m benchmarks.merge_speed --work /some/disk          # needs about 8 GB there, removed afterwards
    python -m benchmarks.merge_speed --quick                    # 4 layers, 2 rounds: a trial, writes no results
    python -m benchmarks.merge_speed --mergekit /venv/bin/python   # a Python that has mergekit, which needs other versions
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.merge_inputs import RANK, TINY_LLAMA, build_adapter, build_base, spot_check
from benchmarks.results import environment, write_result
from rmlora_deploy.bench.machine import usable_cores

LAYERS, ROUNDS = 26, 5
WITHOUT_TORCH = "import sys; sys.modules.update(torch=None, transformers=None)"
"""Makes a process one on a machine without these packages, as deployments are."""

PEAK = """
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
"""Prints the process's peak memory in KiB. What the kernel tells a parent includes the parent's own."""

MERGE = """
import sys
from rmlora_deploy.api import merge
merge(*sys.argv[1:4])
"""

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""

MERGEKIT = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
base, adapter, output = sys.argv[1:4]
config = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}], "dtype": "bfloat16"}
options = MergeOptions(copy_tokenizer=False, lazy_unpickle=True, lora_merge_cache=output + "-cache")
run_merge(MergeConfiguration.model_validate(config), output, options)
"""


def main() -> None:
    """Build, measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="directory to work in (default: the system's temporary directory)")
    parser.add_argument("--layers", type=int, help=f"layers, 0.09 GB each (default {LAYERS})")
    parser.add_argument("--rounds", type=int, help=f"how often each is run (default {ROUNDS})")
    parser.add_argument("--dtype", choices=["BF16", "F16", "F32"], default="BF16", help="type of the checkpoint")
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help="also measure mergekit, with this Python")
    parser.add_argument("--quick", action="store_true", help="4 layers, 2 rounds, and no results file")
    arguments = parser.parse_args()
    layers = arguments.layers or (4 if arguments.quick else LAYERS)
    rounds = arguments.rounds or (2 if arguments.quick else ROUNDS)
    with tempfile.TemporaryDirectory(dir=arguments.work) as directory:
        result = measure(Path(directory), layers, rounds, arguments.dtype, arguments.mergekit)
    _show(result)
    if not arguments.quick:
        suffix = "" if arguments.dtype == "BF16" else f"_{arguments.dtype.lower()}"
        print(write_result(f"merge_speed{suffix}", result))


def measure(work: Path, layers: int, rounds: int, dtype: str, mergekit: Path | None) -> dict[str, Any]:
    """Return times, ratios to the copy and peak memory of every way to merge."""
    base, adapter = work / "base", work / "adapter"
    nbytes = build_base(base, TINY_LLAMA, layers, dtype)
    build_adapter(adapter, TINY_LLAMA, layers)
    commands = _commands(base, adapter, mergekit)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    checked = 0
    run(commands["copy"], work / "out")  # not counted: it brings the base into the page cache
    shutil.rmtree(work / "out")
    for number in range(rounds):
        for name, command in commands.items():
            runs[name].append(run(command, work / "out"))
            if number == 0 and name != "copy":
                checked += spot_check(base, adapter, work / "out", TINY_LLAMA, layers)
            for path in work.glob("out*"):
                shutil.rmtree(path)
    return {
        "environment": {**environment(), "mergekit": _version(mergekit)},
        "settings": {"layers": layers, "rank": RANK, "dtype": dtype, "rounds": rounds, "load": os.getloadavg()[2]},
        "checkpoint_gb": nbytes / 1e9,
        "rows_checked": checked,
        "product_floor_seconds": product_floor(layers),
        "rows": {name: summarize(values, runs["copy"]) for name, values in runs.items()},
    }


def _commands(base: Path, adapter: Path, mergekit: Path | None) -> Mapping[str, Sequence[str]]:
    """Return the command of every way to merge, to be followed by the output's path."""
    places = [str(base), str(adapter)]
    commands: dict[str, list[str]] = {
        "copy": ["cp", "-r", str(base)],
        "ours, without torch": [sys.executable, "-c", WITHOUT_TORCH + MERGE + PEAK, *places],
        "ours, with torch": [sys.executable, "-c", MERGE + PEAK, *places],
        "PEFT": [sys.executable, "-c", PEFT + PEAK, *places],
    }
    if mergekit is not None:
        commands["mergekit"] = [str(mergekit), "-c", MERGEKIT + PEAK, *places]
    return commands


def run(command: Sequence[str], output: Path) -> dict[str, float]:
    """Run ``command`` until its output is on the disk; return its seconds, CPU seconds and peak memory.

    Raises:
        CalledProcessError: it failed.
    """
    os.sync()  # nothing of the run before may be left to write
    started = time.perf_counter()
    process = subprocess.Popen([*command, str(output)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    printed = process.stdout.read().split()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    os.sync()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        **({"peak_mb": int(printed[-1]) / 1024} if printed else {}),
    }


def summarize(runs: Sequence[Mapping[str, float]], copies: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return medians and ranges; the ratio is the median of the ratios to the copy of the same round."""
    seconds = [item["seconds"] for item in runs]
    ratios = [item["seconds"] / copy["seconds"] for item, copy in zip(runs, copies, strict=True)]
    return {
        "seconds": statistics.median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "ratio_to_copy": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "cpu_seconds": statistics.median(item["cpu_seconds"] for item in runs),
        "peak_mb": max((item["peak_mb"] for item in runs if "peak_mb" in item), default=None),
    }


def product_floor(layers: int) -> float:
    """Return the seconds that numpy needs for all products B · A alone, with all cores, into memory that is reused."""
    rng = np.random.default_rng(0)
    pairs = [
        (rng.standard_normal((rows, RANK), np.float32), rng.standard_normal((RANK, columns), np.float32))
        for rows, columns in TINY_LLAMA.projections.values()
    ]
    outputs = [np.zeros((len(left), right.shape[1]), np.float32) for left, right in pairs]

    def layer() -> None:
        for (left, right), out in zip(pairs, outputs, strict=True):
            np.matmul(left, right, out=out)

    return layers * _best_of(layer)


def _best_of(action: Callable[[], None], times: int = 5) -> float:
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def _version(mergekit: Path | None) -> str | None:
    if mergekit is None:
        return None
    code = "from importlib.metadata import version; print(version('mergekit'), 'with torch', version('torch'))"
    return subprocess.run([mergekit, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _show(result: Mapping[str, Any]) -> None:
    print(
        f"{result['checkpoint_gb']:.2f} GB of {result['settings']['dtype']}, {len(usable_cores())} cores; "
        f"the products alone take {result['product_floor_seconds']:.2f} s"
    )
    for name, row in result["rows"].items():
        low, high = row["seconds_range"]
        print(
            f"{name:22} {row['seconds']:6.2f} s ({low:.2f}-{high:.2f})  {row['ratio_to_copy']:5.2f} x copy  "
            f"{row['cpu_seconds']:6.2f} CPU s  {row['peak_mb'] or 0:7.0f} MB"
        )


if __name__ == "__main__":
    main()
