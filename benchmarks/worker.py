"""What workers share: reading the job, timing calls, reporting. Needs nothing but numpy, so that it runs with any peer."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Inputs",
    "columns_of",
    "median_ms",
    "median_step_ms",
    "random_inputs",
    "read_job",
    "report",
    "run_batches",
    "run_encoder",
    "shape_name",
    "versions",
]

Inputs = dict[str, npt.NDArray[np.int64]]
Model = Callable[[Inputs], npt.NDArray[Any]]
"""Computes the logits ``[rows, labels]`` of a batch of token ids."""

VOCABULARY = (1000, 20000)
WARMUP, FEWEST = 2, 5
CHECK_ROWS = 32


def read_job() -> dict[str, Any]:
    """Return the job that the frame wrote to stdin."""
    job: dict[str, Any] = json.load(sys.stdin)
    return job


def report(figures: Mapping[str, float], **more: Any) -> None:
    """Print the report, which ends the worker's part."""
    print(json.dumps({"figures": dict(figures), **more}), flush=True)


def versions(*packages: str) -> dict[str, str]:
    """Return package → version, without those that are not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def shape_name(rows: int, tokens: int) -> str:
    """Return what a batch shape is called in a table."""
    return f"{rows} × {tokens}"


def random_inputs(rows: int, tokens: int, seed: int = 0) -> Inputs:
    """Return a full batch of token ids, without padding."""
    shape = (rows, tokens)
    return {
        "input_ids": np.random.default_rng(seed).integers(*VOCABULARY, shape),
        "attention_mask": np.ones(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }


def median_ms(call: Callable[[], object], seconds: float, *, warmup: int = WARMUP, fewest: int = FEWEST) -> float:
    """Return the median time of a call in milliseconds, over ``seconds`` and at least ``fewest`` calls."""
    for _ in range(warmup):
        call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < fewest or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(1e3 * (time.perf_counter() - start))
    return statistics.median(samples)


def median_step_ms(begin: Callable[[], Callable[[], object]], seconds: float, *, steps: int = 32) -> float:
    """Return the median time of a step in milliseconds, over ``seconds`` and at least two beginnings.

    Args:
        begin: prepares, which is not timed, and returns what does a step; it can be called ``steps`` times.
        seconds: time to spend on steps.
        steps: after which everything begins anew.
    """
    samples: list[float] = []
    while len(samples) < 2 * steps or sum(samples) < 1e3 * seconds:
        step = begin()
        for _ in range(steps):
            start = time.perf_counter()
            step()
            samples.append(1e3 * (time.perf_counter() - start))
    return statistics.median(samples)


def run_encoder(open_model: Callable[[dict[str, Any]], Model], *packages: str) -> None:
    """Be a contestant of a table of encoders: open the model, time every shape, and compare its logits if that is asked.

    The job has ``seconds`` and ``shapes``, and optionally ``columns``, names of the shapes; ``thread_counts``, which are the
    columns then; ``check``: a file with token ids, labels and PyTorch's logits; and ``check_vectors``: a file with token ids and
    float32 vectors, for the model that the job has with the changes in ``vectors``.
    """
    job = read_job()
    if job.get("thread_counts"):
        report(time_thread_counts(open_model, job), versions=versions(*packages, "numpy"))
        return
    start = time.perf_counter()
    model = open_model(job)
    load_seconds = time.perf_counter() - start
    figures = {}
    for column, (rows, tokens) in columns_of(job):
        inputs = random_inputs(rows, tokens)
        figures[column] = median_ms(lambda inputs=inputs: model(inputs), job["seconds"])
    more = compare_logits(model, job["check"], pad=job.get("compiled", False)) if job.get("check") else {}
    if job.get("vectors") and job.get("check_vectors"):
        more |= compare_vectors(open_model({**job, **job["vectors"]}), job["check_vectors"])
    report(figures, load_seconds=load_seconds, versions=versions(*packages, "numpy"), **more)


def columns_of(job: Mapping[str, Any]) -> list[tuple[str, tuple[int, int]]]:
    """Return the column and the batch shape of every figure."""
    names = job.get("columns") or [shape_name(*shape) for shape in job["shapes"]]
    return list(zip(names, map(tuple, job["shapes"]), strict=True))


def time_thread_counts(open_model: Callable[[dict[str, Any]], Model], job: dict[str, Any]) -> dict[str, float]:
    """Open the model anew with each number of threads, on as many cores, and time the first shape."""
    cores = sorted(os.sched_getaffinity(0))
    figures = {}
    for count in job["thread_counts"]:
        os.sched_setaffinity(0, cores[:count])
        model = open_model({**job, "threads": count})
        inputs = random_inputs(*job["shapes"][0])
        figures[str(count)] = median_ms(lambda model=model, inputs=inputs: model(inputs), job["seconds"])
    return figures


def compare_logits(model: Model, check: str, *, pad: bool) -> dict[str, float]:
    """Return the model's accuracy on real texts, and the rms difference of its logits from PyTorch's; see :func:`run_batches`."""
    data = np.load(check)
    logits = run_batches(model, data, pad=pad)
    return {
        "accuracy": float((logits.argmax(axis=1) == data["labels"]).mean()),
        "logit_error": float(np.sqrt(((logits - data["logits"]) ** 2).mean())),
    }


def compare_vectors(model: Model, check: str) -> dict[str, float]:
    """Return the mean and the smallest cosine between the model's vectors of real texts and the float32 ones."""
    data = np.load(check)
    found, exact = (
        rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (run_batches(model, data), data["vectors"])
    )
    cosines = (found * exact).sum(axis=1)
    return {"mean_cosine": float(cosines.mean()), "worst_cosine": float(cosines.min())}


def run_batches(model: Model, data: Mapping[str, Any], *, pad: bool = False) -> npt.NDArray[np.float64]:
    """Return the model's outputs ``[rows, …]`` for padded token ids and masks.

    A batch is as wide as its longest text; with ``pad`` all batches have one shape, for engines that compile each.
    """
    parts = []
    for first in range(0, len(data["input_ids"]), CHECK_ROWS):
        ids, mask = (data[name][first : first + CHECK_ROWS] for name in ("input_ids", "attention_mask"))
        count, width = len(ids), int(mask.sum(axis=1).max())
        if pad:
            ids, mask = (np.resize(array, (CHECK_ROWS, array.shape[1])) for array in (ids, mask))
        else:
            ids, mask = ids[:, :width], mask[:, :width]
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        parts.append(np.asarray(model(batch), np.float64)[:count])
    return np.concatenate(parts)
