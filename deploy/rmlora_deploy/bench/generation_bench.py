"""Benchmark of a language model's bundle: each use of adapters runs once a round in a new process, in alternating order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bench.bench_plan import BatchShape, BenchSettings, Use, uses_of
from rmlora_deploy.bench.generation_worker import NEW_TOKENS
from rmlora_deploy.bench.machine import describe_machine, usable_cores
from rmlora_deploy.bench.worker_process import Job, run_job
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["run_generation_bench"]

Run = dict[str, Any]


def run_generation_bench(
    bundle: Bundle,
    settings: BenchSettings,
    *,
    command: Sequence[str] = (),
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Any]:
    """Measure ``bundle`` and return the result as JSON-ready values; arguments as those of ``run_bench``.

    Returns:
        ``bundle``, ``environment``, ``settings`` and ``rows``: time to the first token of the last row, and tokens a second of all
        rows together after it.

    Raises:
        ConfigError: settings that do not go with a language model.
        InputError: the bundle cannot be measured.
    """
    cores = usable_cores()
    threads = settings.threads or tuple(count for count in (1, 2) if count <= len(cores))
    limit = bundle.manifest.decoder.context_length if bundle.manifest.decoder is not None else 0
    settings = settings.for_texts_up_to(max(1, limit - NEW_TOKENS))
    _check(bundle, settings, max(threads), len(cores), limit)
    uses = uses_of(bundle)
    shapes = settings.shapes(texts=True)
    everyone = [(use, count) for use in uses for count in threads]
    runs: dict[tuple[Use | None, int], list[Run]] = {item: [] for item in everyone}
    for number in range(settings.rounds):
        for turn, (use, count) in enumerate(everyone if number % 2 == 0 else reversed(everyone)):
            on_progress(
                f"{_name(use)}, threads: {count}", number * len(everyone) + turn, settings.rounds * len(everyone)
            )
            run = run_job(_job(bundle, settings, shapes, cores[:count], use))
            if "error" in run:
                raise InputError(f"{bundle.path} cannot be measured: {run['error']}")
            runs[use, count].append(run)
    return {
        "format_version": 1,
        "kind": "generation",
        "bundle": {
            "name": bundle.path.resolve().name,
            "task": bundle.task.name,
            "precision": bundle.precision,
            "bytes": bundle.manifest.model.bytes,
        },
        "command": " ".join(["rmlora-deploy", *command]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": describe_machine(),
        "settings": {**asdict(settings), "threads": threads, "new_tokens": NEW_TOKENS},
        "rows": [
            _row(use, count, shape, [run["figures"][number] for run in runs[use, count]], runs[use, count])
            for use, count in everyone
            for number, shape in enumerate(shapes)
        ],
    }


def _check(bundle: Bundle, settings: BenchSettings, threads: int, cores: int, limit: int) -> None:
    """Raise :class:`ConfigError` for settings that do not go with a language model."""
    if threads > cores:
        raise ConfigError(f"--threads {threads} is more than the {cores} cores this process may use.")
    if settings.engines not in (None, ("onnx",)):
        raise ConfigError("A language model is measured in ONNX Runtime only: leave --engine out.")
    if settings.providers not in (None, ("cpu",)):
        raise ConfigError("A language model is measured on the CPU only: leave --provider out.")
    longest = max(settings.lengths or (0,))
    if longest + NEW_TOKENS > limit:
        raise ConfigError(
            f"--length {longest} and {NEW_TOKENS} new tokens exceed the {limit} tokens that {bundle.path} holds: choose "
            "a smaller --length."
        )


def _job(
    bundle: Bundle, settings: BenchSettings, shapes: Sequence[BatchShape], cores: Sequence[int], use: Use | None
) -> Job:
    return Job(
        bundle=str(bundle.path),
        engine="onnx",
        provider="cpu",
        threads=len(cores),
        cores=tuple(cores),
        shapes=tuple((shape.rows, shape.tokens) for shape in shapes),
        seconds=settings.seconds,
        warmup=settings.warmup,
        seed=settings.seed,
        base=None,
        adapter=None,
        use=use,
    )


def _row(use: Use | None, threads: int, shape: BatchShape, figures: Sequence[Run], runs: Sequence[Run]) -> Run:
    """Return the medians over the rounds, with their ranges."""
    row: Run = {"name": _name(use), "use": use, "threads": threads, "rows": shape.rows, "tokens": shape.tokens}
    for key in ("first_token_ms", "tokens_per_second"):
        values = [figure[key] for figure in figures]
        row |= {key: float(np.median(values)), f"{key}_range": [min(values), max(values)]}
    shares = [figure["others_share"] for figure in figures if figure["others_share"] is not None]
    row["others_share"] = max(shares, default=None)
    row["load_seconds"] = float(np.median([run["load_seconds"] for run in runs]))
    row["peak_mb"] = max((run["peak_mb"] for run in runs if run["peak_mb"] is not None), default=None)
    return row


def _name(use: Use | None) -> str:
    return use or "merged"
