"""The cost of branches: one graph with 8 adapters of rank 8 on all 36 projections of MiniLM, against a merged model.

Each contestant runs in its own process, pinned to the same cores, in alternating order:

- the merged bundle, with the same optimization and onnxruntime called directly, and the same file with onnxruntime's
  defaults;
- the graph with branches through ``AdapterSession``: no adapter, one adapter, a different adapter for every row, in a
  fixed and in a changing mix, and the changing mix with 1,000 registered adapters;
- an adapter and the base in specialized graphs (``AdapterSession.specialize``);
- PEFT's ``adapter_names`` with the same mix.

The time includes everything a caller waits for: looking up the adapters, binding the LoRA inputs, sorting the rows.

    python -m benchmarks.branches              # writes benchmarks/results/branches.json, about 12 minutes
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.assets import minilm
from benchmarks.contest import take_turns
from benchmarks.results import environment, write_result
from rmlora_deploy.bench.machine import OthersWatch, pin, usable_cores
from rmlora_deploy.bundles.bundle import Bundle

SIZES = ((1, 32), (8, 16), (8, 32), (8, 128))
ADAPTERS, RANK, LABELS, MANY = 8, 8, ("no", "yes"), 1000
THREADS = 2
WARMUP, FEWEST = 3, 7
VOCABULARY = (1000, 20000)

Inputs = dict[str, npt.NDArray[np.int64]]


def main() -> None:
    """Make the bundles, measure the contestants in turn, print ratios and write the file; or be one contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.6, help="time on each batch shape in a turn (default %(default)s)"
    )
    parser.add_argument("--work", type=Path, help="keep bundles and adapters here (default: a temporary directory)")
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run_worker(options.worker, options.work, options.seconds)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        made = make_bundles(work)
        runs = run_in_turns(work, options.rounds, options.seconds)
        result = {
            "environment": environment(),
            "settings": {"rounds": options.rounds, "seconds": options.seconds, "rank": RANK, "adapters": ADAPTERS},
            **made,
            "loading": measure_loading(work),
            "rows": list(summarize(runs)),
        }
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['name']:34} {row['batch']} × {row['tokens']:<4} {row['ms']:8.2f} ms   {row['ratio']:.3f} × merged "
            f"[{low:.3f}, {high:.3f}]"
        )
    print(json.dumps({key: result[key] for key in ("seconds", "loading")}, indent=2))
    print(write_result("branches", result))


def make_bundles(work: Path) -> dict[str, Any]:
    """Export the merged and the branch bundles with random adapters; compare the time of an export with adding an adapter."""
    export = export_bundles(work)
    export_int8(work)
    adding = []
    for _ in range(5):
        adding.append(_command("adapter", "add", work / "branches", f"extra={work / f'a{ADAPTERS}'}"))
        _command("adapter", "remove", work / "branches", "extra")
    once = statistics.median(adding)
    return {"seconds": {"export": round(export, 1), "adapter add": round(once, 2), "ratio": round(export / once, 1)}}


def export_bundles(work: Path) -> float:
    """Make random adapters, export one merged and all of them as branches, and return the seconds of the second export."""
    from benchmarks.random_adapters import save_random_adapter

    for seed in range(ADAPTERS + 1):
        name = f"a{seed}"
        if not (work / name).is_dir():
            save_random_adapter(
                minilm(), "text-classification", work / name, rank=RANK, labels=LABELS, seed=seed, size=0.02
            )
    _command("export", minilm(), "--adapter", work / "a0", "--output", work / "merged", "--overwrite")
    words = ("--mode", "branches", *_adapter_flags(work), "--output", work / "branches", "--overwrite")
    return _command("export", minilm(), *words)


def export_int8(work: Path) -> None:
    """Export the branches once more, on an int8 base."""
    words = ("--mode", "branches", *_adapter_flags(work), "--output", work / "branches-int8", "--overwrite")
    _command("export", minilm(), *words, "--precision", "int8", "--no-verify")


def _adapter_flags(work: Path) -> list[str]:
    return [part for seed in range(ADAPTERS) for part in ("--adapter", f"a{seed}={work / f'a{seed}'}")]


def run_in_turns(work: Path, rounds: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Run each contestant ``rounds`` times, in alternating order, and return their reports."""

    def run(name: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.branches", "--worker", name]
        command += ["--work", str(work), "--seconds", str(seconds)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report

    runs, _ = take_turns(list(CONTESTANTS), rounds, run, lambda name, _: print(name, file=sys.stderr))
    return runs


def summarize(runs: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each contestant and batch shape; a ratio is the median of the ratios within each round."""
    for name, reports in runs.items():
        for number, (batch, tokens) in enumerate(SIZES):
            mine = [report["ms"][number] for report in reports]
            merged = [report["ms"][number] for report in runs["merged"]]
            ratios = [a / b for a, b in zip(mine, merged, strict=True)]
            shares = [report["others"] for report in reports if report["others"] is not None]
            yield {
                "name": name,
                "batch": batch,
                "tokens": tokens,
                "ms": statistics.median(mine),
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [float(q) for q in np.percentile(ratios, [25, 75])],
                "ratio_range": [min(ratios), max(ratios)],
                "others_share": max(shares, default=None),
            }


def measure_loading(work: Path, count: int = 50) -> dict[str, float]:
    """Return how much longer a run takes that registers and loads an adapter, whose file is in the page cache."""
    from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter

    bundle = Bundle.open(work / "branches", check_files=False)
    session = bundle.adapter_session(threads=THREADS, max_active_adapters=count + 1)
    inputs = random_inputs(1, 32)
    path = bundle.path / bundle.adapter("a0").file
    steady = statistics.median(_timed(lambda: session.run(inputs, "a0")) for _ in range(count))

    def first(name: str) -> None:
        session.register(name, partial(read_onnx_adapter, path))
        session.run(inputs, name)

    loading = [_timed(partial(first, f"new{number}")) - steady for number in range(count)]
    low, middle, high = np.percentile(loading, [25, 50, 75])
    return {
        "bytes": path.stat().st_size,
        "steady_ms": steady,
        "extra_ms": middle,
        "quartile_1": low,
        "quartile_3": high,
    }


def run_worker(name: str, work: Path, seconds: float) -> dict[str, Any]:
    """Measure one contestant and return its median in milliseconds for each of :data:`SIZES`."""
    cores = usable_cores()[:THREADS]
    pin(cores)
    call_on = CONTESTANTS[name](work)
    others = OthersWatch(cores)
    times = []
    for batch, tokens in SIZES:
        call = partial(call_on, random_inputs(batch, tokens))
        for _ in range(WARMUP):
            call()
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while len(samples) < FEWEST or time.perf_counter() < end:
            samples.append(_timed(call))
        times.append(statistics.median(samples))
    return {"ms": times, "others": others.share()}


def random_inputs(batch: int, tokens: int, seed: int = 0) -> Inputs:
    """Return a batch without padding."""
    shape = (batch, tokens)
    return {
        "input_ids": np.random.default_rng(seed).integers(*VOCABULARY, shape),
        "token_type_ids": np.zeros(shape, np.int64),
        "attention_mask": np.ones(shape, np.int64),
    }


def _merged(work: Path) -> Callable[[Inputs], object]:
    session = Bundle.open(work / "merged", check_files=False).session(threads=THREADS)
    return lambda inputs: session.run(None, inputs)


def _merged_by_default(work: Path) -> Callable[[Inputs], object]:
    """Open the merged graph with onnxruntime's defaults, which fuse additions and norms."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    model = str(Bundle.open(work / "merged", check_files=False).model_path)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def _branches(
    work: Path, use: str, *, registered: int = ADAPTERS, specialized: bool = False, bundle_name: str = "branches"
) -> Callable[[Inputs], object]:
    from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter

    bundle = Bundle.open(work / bundle_name, check_files=False)
    session = bundle.adapter_session(threads=THREADS)
    names = list(bundle.adapters)
    for number in range(registered - len(names)):
        path = bundle.path / bundle.adapter(names[number % len(names)]).file
        session.register(f"more{number}", partial(read_onnx_adapter, path))
    rng = np.random.default_rng(0)
    if use == "none":
        _answer_without_adapter(session)
    if specialized:
        session.specialize(None if use == "none" else names[0])

    def run(inputs: Inputs) -> object:
        rows = len(inputs["input_ids"])
        if use == "mixed":
            return session.run(inputs, [names[row % len(names)] for row in range(rows)])
        if use == "changing":
            return session.run(inputs, [names[number] for number in rng.integers(0, len(names), rows)])
        return session.run(inputs, names[0] if use == "one" else None)

    return run


def _answer_without_adapter(session: Any) -> None:
    """Let the session run rows without an adapter: it refuses them, as MiniLM has no head, but here only the cost counts."""
    session._untrained_head = None


def _peft(work: Path) -> Callable[[Inputs], object]:
    import torch
    from peft import PeftModel

    from rmlora.tasks import get_task
    from rmlora.torch_models import load_task_model

    torch.set_num_threads(THREADS)
    torch.set_num_interop_threads(1)
    base = load_task_model(minilm(), get_task("text-classification"), LABELS).model
    names = [f"a{number}" for number in range(ADAPTERS)]
    model = PeftModel.from_pretrained(base, str(work / "a0"), adapter_name="a0")
    for name in names[1:]:
        model.load_adapter(str(work / name), adapter_name=name)
    model.eval()

    def run(inputs: Inputs) -> object:
        rows = len(inputs["input_ids"])
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.inference_mode():
            return model(**tensors, adapter_names=[names[row % len(names)] for row in range(rows)]).logits

    return run


CONTESTANTS: dict[str, Callable[[Path], Callable[[Inputs], object]]] = {
    "merged": _merged,
    "merged, onnxruntime's defaults": _merged_by_default,
    "no adapter": partial(_branches, use="none"),
    "no adapter, graph of its own": partial(_branches, use="none", specialized=True),
    "one adapter": partial(_branches, use="one"),
    "one adapter, graph of its own": partial(_branches, use="one", specialized=True),
    "one for each row": partial(_branches, use="mixed"),
    "each row at random": partial(_branches, use="changing"),
    "each row at random, 1000 known": partial(_branches, use="changing", registered=MANY),
    "one for each row, int8": partial(_branches, use="mixed", bundle_name="branches-int8"),
    "PEFT, one for each row": _peft,
}


def _timed(call: Callable[[], object]) -> float:
    """Return the milliseconds of a call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _command(*words: str | Path) -> float:
    """Run the command line in a new process and return the seconds it took."""
    start = time.monotonic()
    command = [sys.executable, "-m", "rmlora_deploy", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.monotonic() - start


if __name__ == "__main__":
    main()
