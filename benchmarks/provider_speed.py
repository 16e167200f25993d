"""The time of a merged MiniLM on the CPU provider and on OpenVINO's, in float32 and in bf16.

All sessions are open in one process, with as many threads as there are cores, and take turns on the same inputs, so that a
disturbance meets all alike. A provider that cannot be used here is listed as not measured, with the reason. The graph is
that of a bundle; exporting it needs torch, so that where only ONNX Runtime with OpenVINO is installed (the packages
onnxruntime-openvino and openvino), pass a bundle that was exported elsewhere.

    python -m benchmarks.provider_speed                        # writes benchmarks/results/provider_speed.json, about a minute
    python -m benchmarks.provider_speed --bundle work/merged   # measures this bundle
    python -m benchmarks.provider_speed --quick                # few turns, nothing is written
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import environment, write_result
from rmlora_deploy.bench.machine import usable_cores
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime.providers import unusable

PROVIDERS = {
    "cpu, fp32": "cpu",
    "openvino, fp32": "openvino?INFERENCE_PRECISION_HINT=f32",
    "openvino, bf16": "openvino?INFERENCE_PRECISION_HINT=bf16",
}
"""Name → provider; the first is what the others are compared with."""
SHAPES = ((8, 32), (8, 128), (32, 64))


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="merged bundle to measure (default: MiniLM is exported)")
    parser.add_argument("--turns", type=int, default=60, help="runs of each provider and shape (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="8 turns, and write nothing")
    options = parser.parse_args()
    turns, before = 8 if options.quick else options.turns, round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(Bundle.open(options.bundle or _exported(Path(scratch)), check_files=False), turns)
    result = {
        "environment": environment(),
        "load_average_before": before,
        "settings": {"turns": turns, "threads": len(usable_cores())},
        "providers": measured,
    }
    print(json.dumps(measured, indent=1))
    if not options.quick:
        print(write_result("provider_speed", result))


def _exported(work: Path) -> Path:
    from benchmarks.overload import make_bundle  # needs torch

    make_bundle(work)
    return work / "merged"


def measure(bundle: Bundle, turns: int) -> dict[str, Any]:
    """Return for every provider the figures of every shape, or why it was not measured."""
    found: dict[str, Any] = {name: {"not_measured": unusable(provider)} for name, provider in PROVIDERS.items()}
    sessions = {
        name: bundle.session(provider, threads=len(usable_cores()))
        for name, provider in PROVIDERS.items()
        if found[name]["not_measured"] is None
    }
    for name in sessions:
        found[name] = {"provider": PROVIDERS[name]}
    for rows, tokens in SHAPES:
        for name, figures in _take_turns(sessions, _inputs(bundle, rows, tokens), turns).items():
            found[name][f"{rows} × {tokens}"] = figures
    return found


def _inputs(bundle: Bundle, rows: int, tokens: int) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(1000, 20_000, (rows, tokens))
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {item.name: values[item.name] for item in bundle.manifest.model.inputs}


def _take_turns(sessions: dict[str, Any], inputs: dict[str, Any], turns: int) -> dict[str, dict[str, float]]:
    """Return for each session its median time, its ratio to the first, and how far its output is from the first's."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    outputs = {name: session.run(None, inputs)[0] for name, session in sessions.items()}
    for number in range(turns + 3):
        for name in list(sessions) if number % 2 == 0 else reversed(sessions):
            started = time.perf_counter()
            sessions[name].run(None, inputs)
            if number >= 3:  # warm
                times[name].append(time.perf_counter() - started)
    first = next(iter(sessions))
    scale = float(np.sqrt((outputs[first] ** 2).mean()))
    return {
        name: {
            "ms": round(1000 * statistics.median(took), 2),
            "ratio": round(statistics.median(a / b for a, b in zip(took, times[first], strict=True)), 3),
            "rms_relative_difference": float(f"{np.sqrt(((outputs[name] - outputs[first]) ** 2).mean()) / scale:.1e}"),
        }
        for name, took in times.items()
    }


if __name__ == "__main__":
    main()
