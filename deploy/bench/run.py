"""Taking turns: every contestant runs in a fresh process, in alternating order, round after round."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploy.bench.plan import BenchSettings, Contestant, Job, contestants
from deploy.bundle import Bundle

__all__ = ["run_bench"]

_TOOLS = ("onnxruntime", "onnxruntime-gpu", "torch", "transformers", "numpy")


def run_bench(
    bundle: Bundle,
    settings: BenchSettings,
    *,
    base: str | None,
    adapter: Path | None,
    command: Sequence[str],
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Measure and return the result as JSON-ready values.

    Args:
        bundle: what to measure.
        settings: sizes and repetitions.
        base: base model for PyTorch's rows; None uses the one recorded in the bundle.
        adapter: the same for the adapter.
        command: the command line, noted in the result.
        progress: called with (contestant, runs done, runs in all).

    Returns:
        ``environment``, ``settings``, and ``rows``: one per contestant and size with the median over rounds of
        every figure, their spread, and the ratio of PyTorch's median time to this one's (same threads).
    """
    base = base or bundle.manifest["base"]["source"]
    adapter = adapter or Path(bundle.manifest["adapter"]["source"])
    everyone = contestants(settings, _torch_missing(base, adapter))
    able = [item for item in everyone if item.missing is None]
    lengths: tuple[int | None, ...] = settings.lengths if _is_text(bundle) else (None,)
    sizes = tuple((rows, tokens) for rows in settings.batches for tokens in lengths)
    cores = sorted(os.sched_getaffinity(0))
    runs: dict[Contestant, list[dict[str, Any]]] = {item: [] for item in able}
    for number in range(settings.rounds):
        for item in able if number % 2 == 0 else reversed(able):
            done = sum(len(results) for results in runs.values())
            progress(f"{item.name}, {item.threads} threads", done, settings.rounds * len(able))
            job = Job(
                bundle=str(bundle.path),
                engine=item.engine,
                provider=item.provider,
                threads=item.threads,
                cores=tuple(cores[: max(item.threads, 1)]),
                sizes=sizes,
                seconds=settings.seconds,
                warmup=settings.warmup,
                seed=settings.seed,
                base=base,
                adapter=str(adapter),
            )
            runs[item].append(_in_process(job))
    rows = [row for item in everyone for row in _summarise(item, runs.get(item, []), sizes)]
    _add_ratios(rows)
    return {
        "bundle": {
            "path": bundle.path.name,
            "precision": bundle.precision,
            "bytes": bundle.manifest["model"]["bytes"],
        },
        "environment": _environment(cores, command),
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "warmup": settings.warmup,
            "seed": settings.seed,
        },
        "rows": rows,
    }


def _is_text(bundle: Bundle) -> bool:
    return any(item["name"] == "input_ids" for item in bundle.manifest["model"]["inputs"])


def _torch_missing(base: str, adapter: Path) -> str | None:
    for module in ("torch", "transformers", "peft"):
        if find_spec(module) is None:
            return f"{module} is not installed"
    if not adapter.is_dir():
        return f"the adapter {adapter.name} is not there: pass --adapter"
    if base.startswith("/") and not Path(base).exists():
        return f"the base {Path(base).name} is not there: pass --base"
    return None


def _in_process(job: Job) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.run(
        [sys.executable, "-m", "deploy.bench.worker"],
        input=json.dumps(job.to_dict()),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    lines = process.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return {"error": f"the process died: {last}"}
    return result if isinstance(result, dict) else {"error": "the process answered nonsense"}


def _summarise(
    item: Contestant, runs: Sequence[dict[str, Any]], sizes: Sequence[tuple[int, int | None]]
) -> list[dict[str, Any]]:
    head = {"engine": item.engine, "provider": item.provider, "threads": item.threads, "name": item.name}
    missing = item.missing or next((run["error"] for run in runs if "error" in run), None)
    if missing:
        return [{**head, "not_measured": missing}]
    rows = []
    for number, (batch, tokens) in enumerate(sizes):
        measured = [run["sizes"][number] for run in runs]
        medians = [one["p50_ms"] for one in measured]
        rows.append(
            {
                **head,
                "rows": batch,
                "tokens": tokens,
                **{key: statistics.median(one[key] for one in measured) for key in ("p50_ms", "p90_ms", "p99_ms")},
                "p50_ms_range": [min(medians), max(medians)],
                "rows_per_second": statistics.median(one["rows_per_second"] for one in measured),
                "load_seconds": statistics.median(run["load_seconds"] for run in runs),
                "model_mb": statistics.median(run["model_mb"] for run in runs),
                "peak_mb": statistics.median(run["peak_mb"] for run in runs),
            }
        )
    return rows


def _add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add to each row how many times faster than PyTorch on the CPU with the same threads it is."""
    torch_times = {
        (row["threads"], row["rows"], row["tokens"]): row["p50_ms"]
        for row in rows
        if row["engine"] == "torch" and "p50_ms" in row
    }
    for row in rows:
        reference = torch_times.get((row["threads"], row.get("rows"), row.get("tokens")))
        if "p50_ms" in row and reference is not None:
            row["speed_over_torch"] = reference / row["p50_ms"]


def _environment(cores: Sequence[int], command: Sequence[str]) -> dict[str, Any]:
    tools = {}
    for name in _TOOLS:
        try:
            tools[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["rmlora-deploy", *command]),
        "processor": processor_name(),
        "cores": len(cores),
        "python": platform.python_version(),
        "packages": tools,
    }


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
