"""Measuring a language model in a worker process: time to the first token, and tokens a second after it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmlora_deploy.bench.bench_plan import SPECIALIZED
from rmlora_deploy.bench.machine import OthersWatch, peak_mb, pin, resident_mb
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime import AdapterRef
from rmlora_deploy.runtime.decoder.decoder_batch import DecoderBatch
from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession

__all__ = ["NEW_TOKENS", "measure_generation"]

NEW_TOKENS = 32
"""Tokens that every row is continued by."""
_FEWEST_SAMPLES = 2


def measure_generation(bundle: Bundle, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of every batch shape; ``job`` has the fields of :class:`~rmlora_deploy.bench.worker_process.Job`."""
    pinned = pin(job["cores"]) if job["cores"] else False
    started = time.perf_counter()
    session = bundle.decoder_session(job["provider"], threads=job["threads"])
    if job["use"] == SPECIALIZED:
        session.specialize(next(iter(bundle.adapters)))
    load_seconds, loaded_mb = time.perf_counter() - started, resident_mb()
    figures = [
        _figures(session, job, rows, tokens, _adapters(bundle, job["use"], rows)) for rows, tokens in job["shapes"]
    ]
    return {
        "how": "DecoderSession",
        "pinned": pinned,
        "load_seconds": load_seconds,
        "loaded_mb": loaded_mb,
        "peak_mb": peak_mb(),
        "figures": figures,
    }


def _adapters(bundle: Bundle, use: str | None, rows: int) -> list[AdapterRef | None]:
    """Return the adapter of every row."""
    names = list(bundle.adapters)
    if use in ("one adapter", SPECIALIZED):
        return [AdapterRef(names[0])] * rows
    if use == "one for each row":
        return [AdapterRef(names[row % len(names)]) for row in range(rows)]
    return [None] * rows


def _figures(
    session: DecoderSession, job: Mapping[str, Any], rows: int, tokens: int, refs: Sequence[AdapterRef | None]
) -> dict[str, Any]:
    """Generate repeatedly for the job's ``seconds``; return medians, and how busy the machine was otherwise."""
    random = np.random.default_rng(job["seed"])
    prompts = random.integers(0, session.layout.vocabulary, (rows, tokens)).tolist()
    following = random.integers(0, session.layout.vocabulary, (NEW_TOKENS, rows)).tolist()
    others = OthersWatch(job["cores"])
    firsts: list[float] = []
    rates: list[float] = []
    end = time.perf_counter() + job["seconds"]
    while len(firsts) < _FEWEST_SAMPLES or time.perf_counter() < end:
        begin = time.perf_counter()
        batch = DecoderBatch(session, prompts, refs, new_tokens=NEW_TOKENS)
        for row in range(rows):
            batch.read(row)
        read = time.perf_counter()
        for step in following:
            batch.advance(step)
        firsts.append(1e3 * (read - begin))
        rates.append(rows * NEW_TOKENS / (time.perf_counter() - read))
    return {
        "first_token_ms": float(np.median(firsts)),
        "tokens_per_second": float(np.median(rates)),
        "samples": len(firsts),
        "others_share": others.share(),
    }
