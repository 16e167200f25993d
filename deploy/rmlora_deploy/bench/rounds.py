"""The measurement: each contestant runs once a round in a new process, in alternating order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import rmlora.errors
from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bench.bench_inputs import longest_text
from rmlora_deploy.bench.bench_plan import BatchShape, BenchSettings, Contestant, list_contestants, uses_of
from rmlora_deploy.bench.generation_bench import run_generation_bench
from rmlora_deploy.bench.machine import describe_machine, usable_cores
from rmlora_deploy.bench.summary import summarize
from rmlora_deploy.bench.worker_process import Job, run_job
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.sources import find_adapter_directory, find_base_directory

__all__ = ["run_bench"]

Run = dict[str, Any]

_TORCH_PACKAGES = ("torch", "transformers", "peft")
"""What PyTorch's engines need."""


def run_bench(
    bundle: Bundle,
    settings: BenchSettings,
    *,
    base: str | None = None,
    adapter: Path | None = None,
    command: Sequence[str] = (),
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Any]:
    """Measure ``bundle`` and return the result as JSON-ready values.

    If a contestant's process dies, it is listed with the reason and the others go on.

    Args:
        bundle: what to measure.
        settings: what to measure, and how often.
        base: base model for PyTorch; None uses the one recorded in the bundle.
        adapter: adapter for PyTorch; None uses the one recorded in the bundle.
        command: the command line, recorded in the result.
        on_progress: called with (contestant, runs done, runs in total).

    Returns:
        ``bundle``, ``environment``, ``settings``, ``contestants`` and ``rows``; see docs/bench.md. A language model's result is
        that of :func:`rmlora_deploy.bench.generation_bench.run_generation_bench`.

    Raises:
        ConfigError: more threads than cores, or texts longer than the model reads.
        ProviderError: a provider named in the settings is absent or did not start.
        InputError: ONNX Runtime could not be measured at all, or the settings name PyTorch and its base or adapter is
            missing.
        DependencyError: the settings name PyTorch and it is not installed.
    """
    if bundle.task.outputs.kind == "text":
        return run_generation_bench(bundle, settings, command=command, on_progress=on_progress)
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
    everyone = list_contestants(settings, threads, _torch_missing(bundle, base, adapter), uses=uses_of(bundle))
    _refuse_missing(settings, everyone)
    settings = settings.for_texts_up_to(longest_text(bundle))
    shapes = settings.shapes(texts=_takes_texts(bundle))
    runs: dict[Contestant, list[Run]] = {item: [] for item in everyone if item.missing is None}
    failures: dict[Contestant, str] = {}
    for number in range(settings.rounds):
        able = [item for item in runs if item not in failures]
        for turn, item in enumerate(able if number % 2 == 0 else reversed(able)):
            total = settings.rounds * len(able)
            on_progress(f"{item.name}, threads: {item.threads}", number * len(able) + turn, total)
            run = run_job(_job(bundle, settings, item, shapes, cores, base, adapter))
            if "error" in run:
                _raise_if_named(settings, item, run)
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
        **summarize(everyone, shapes, runs, failures),
    }


def _takes_texts(bundle: Bundle) -> bool:
    return any(item.name == "input_ids" for item in bundle.manifest.model.inputs)


def _recorded_base(bundle: Bundle) -> str:
    """Return the base's directory on this machine, or else the name in the manifest."""
    return str(find_base_directory(bundle.manifest) or bundle.base.source)


def _torch_missing(bundle: Bundle, base: str, adapter: Path) -> str | None:
    """Return why PyTorch cannot be measured, or None."""
    for module in _TORCH_PACKAGES:
        if find_spec(module) is None:
            return f"the package {module} is not installed"
    if not adapter.is_dir():
        return f"the adapter {adapter} is not there: pass --adapter"
    if not Path(base).exists() and not bundle.base.hub:
        return f"the base {base} is not there: pass --base"
    return None


def _refuse_missing(settings: BenchSettings, everyone: Sequence[Contestant]) -> None:
    """Raise if a named engine cannot run, before minutes are spent on the others."""
    for item in everyone:
        if settings.engines is not None and item.engine != "onnx" and item.missing is not None:
            for module in _TORCH_PACKAGES:
                rmlora.errors.require(module, "export")
            raise InputError(f"PyTorch cannot be measured: {item.missing}.")


def _raise_if_named(settings: BenchSettings, item: Contestant, run: Run) -> None:
    """Raise the worker's error if the settings cause it, or name the contestant; a crash never raises."""
    kind = getattr(rmlora.errors, run.get("kind", ""), None)
    named = settings.providers is not None if item.engine == "onnx" else settings.engines is not None
    if kind is ConfigError or (kind is not None and named):
        raise kind(run["error"])


def _job(
    bundle: Bundle, settings: BenchSettings, item: Contestant, shapes: Sequence[BatchShape], cores: Sequence[int],
    base: str, adapter: Path,
) -> Job:  # fmt: skip
    return Job(
        bundle=str(bundle.path),
        engine=item.engine,
        provider=item.provider,
        threads=item.threads,
        cores=tuple(cores[: item.threads]),
        shapes=tuple((shape.rows, shape.tokens) for shape in shapes),
        seconds=settings.seconds,
        warmup=settings.warmup,
        seed=settings.seed,
        base=base,
        adapter=str(adapter),
        use=item.use,
        trust_remote_code=settings.trust_remote_code,
    )
