"""Taking turns: every contestant runs in a fresh process, in alternating order, round after round."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import rmlora.errors
from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bench.bench_plan import BenchSettings, Contestant, Job, Size, contestants
from rmlora_deploy.bench.machine import describe_machine, usable_cores
from rmlora_deploy.bench.summary import summarize
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.sources import find_adapter_directory, find_base_directory

__all__ = ["run_bench"]

Run = dict[str, Any]


def run_bench(
    bundle: Bundle,
    settings: BenchSettings,
    *,
    base: str | None = None,
    adapter: Path | None = None,
    command: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Any]:
    """Measure and return the result as JSON-ready values.

    A contestant whose process dies is listed with the reason and the others go on.

    Args:
        bundle: what to measure.
        settings: sizes and repetitions.
        base: base model for PyTorch's rows; None uses the one recorded in the bundle.
        adapter: the same for the adapter.
        command: the command line, noted in the result.
        progress: called with (contestant, runs done, runs in all).

    Returns:
        ``bundle``, ``environment``, ``settings``, ``contestants`` and ``rows``; see docs/bench.md.

    Raises:
        ConfigError: more threads than cores, or texts longer than the model reads.
        ProviderError: a provider asked for by name is absent or did not start.
        InputError: ONNX Runtime could not be measured at all, or PyTorch was asked for by name and its base or
            adapter is missing.
        DependencyError: PyTorch was asked for by name and is not installed.
    """
    cores = usable_cores()
    threads = settings.threads or tuple(count for count in (1, 2) if count <= len(cores))
    if max(threads) > len(cores):
        raise ConfigError(f"--threads {max(threads)} is more than the {len(cores)} cores this process may use.")
    branches = bundle.mode == "branches"
    if branches and not bundle.adapters:
        raise InputError(f"{bundle.path} has no adapters to measure: add one with  rmlora-deploy adapter add.")
    first = next(iter(bundle.adapters.values())) if branches else bundle.merged_adapter
    adapter = adapter or find_adapter_directory(bundle.manifest, first) or Path(first.source)
    base = base or _recorded_base(bundle)
    everyone = contestants(settings, threads, _torch_missing(bundle, base, adapter), branches=branches)
    _refuse_missing(settings, everyone)
    sizes = settings.sizes(texts=_takes_texts(bundle))
    runs: dict[Contestant, list[Run]] = {item: [] for item in everyone if item.missing is None}
    failures: dict[Contestant, str] = {}
    for number in range(settings.rounds):
        able = [item for item in runs if item not in failures]
        for turn, item in enumerate(able if number % 2 == 0 else reversed(able)):
            total = settings.rounds * len(able)
            progress(f"{item.name}, threads: {item.threads}", number * len(able) + turn, total)
            run = _in_process(_job(bundle, settings, item, sizes, cores, base, adapter))
            if "error" in run:
                _raise_if_asked_for(settings, item, run)
                failures[item] = run["error"]
            else:
                runs[item].append(run)
    failures.update({item: item.missing for item in everyone if item.missing is not None})
    onnx = [item for item in everyone if item.engine == "onnx"]
    if onnx and all(item in failures for item in onnx):
        raise InputError(f"ONNX Runtime could not run {bundle.path}: {failures[onnx[0]]}")
    return {
        "format_version": 1,
        "bundle": {
            "name": bundle.path.resolve().name,
            "task": bundle.task.name,
            "precision": bundle.precision,
            "bytes": bundle.manifest.model.bytes,
        },
        "command": " ".join(["rmlora-deploy", *command]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": describe_machine(),
        "settings": {**asdict(settings), "threads": threads},
        **summarize(everyone, sizes, runs, failures),
    }


def _takes_texts(bundle: Bundle) -> bool:
    return any(item.name == "input_ids" for item in bundle.manifest.model.inputs)


def _recorded_base(bundle: Bundle) -> str:
    """Return where the base lies on this machine, or what the manifest calls it."""
    return str(find_base_directory(bundle.manifest) or bundle.base.source)


def _torch_missing(bundle: Bundle, base: str, adapter: Path) -> str | None:
    for module in ("torch", "transformers", "peft"):
        if find_spec(module) is None:
            return f"the package {module} is not installed"
    if not adapter.is_dir():
        return f"the adapter {adapter} is not there: pass --adapter"
    if not Path(base).exists() and not bundle.base.hub:
        return f"the base {base} is not there: pass --base"
    return None


def _refuse_missing(settings: BenchSettings, everyone: Sequence[Contestant]) -> None:
    """Refuse an engine asked for by name that cannot run, before minutes are spent on the others."""
    for item in everyone:
        if settings.engines is not None and item.engine != "onnx" and item.missing is not None:
            for module in ("torch", "transformers", "peft"):
                rmlora.errors.require(module, "export")
            raise InputError(f"PyTorch cannot be measured: {item.missing}.")


def _raise_if_asked_for(settings: BenchSettings, item: Contestant, run: Run) -> None:
    """Raise the worker's own error where it is the user's to mend; a crash is only noted."""
    kind = getattr(rmlora.errors, run.get("kind", ""), None)
    asked = settings.providers is not None if item.engine == "onnx" else settings.engines is not None
    if kind is ConfigError or (kind is not None and asked):
        raise kind(run["error"])


def _job(
    bundle: Bundle, settings: BenchSettings, item: Contestant, sizes: Sequence[Size], cores: Sequence[int],
    base: str, adapter: Path,
) -> Job:  # fmt: skip
    return Job(
        bundle=str(bundle.path),
        engine=item.engine,
        provider=item.provider,
        threads=item.threads,
        cores=tuple(cores[: item.threads]),
        sizes=tuple((size.rows, size.tokens) for size in sizes),
        seconds=settings.seconds,
        warmup=settings.warmup,
        seed=settings.seed,
        base=base,
        adapter=str(adapter),
        use=item.use,
    )


def _in_process(job: Job) -> Run:
    """Run a worker; whatever goes wrong in it becomes ``{"error": …}``."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(job.threads),
        "MKL_NUM_THREADS": str(job.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    process = subprocess.run(
        [sys.executable, "-m", "rmlora_deploy.bench.worker"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if process.returncode == -signal.SIGINT:  # meant for all of us: Python may have lost ours in a destructor
        raise KeyboardInterrupt
    if process.returncode:
        return {"error": f"its process died: {_last_words(process)}"}
    result: Run = json.loads(process.stdout.strip().splitlines()[-1])  # libraries may have printed before it
    return result


def _last_words(process: subprocess.CompletedProcess[str]) -> str:
    if process.returncode < 0:
        return f"signal {signal.Signals(-process.returncode).name}"
    lines = process.stderr.strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {process.returncode}"
