"""What a server tells about itself: Prometheus metrics, and the recent past for its page."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as Total
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rmlora_deploy.serving.latency_window import LatencyWindow
from rmlora_deploy.serving.queue import Row
from rmlora_deploy.serving.registry import Registry

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)
_KEPT_SECONDS, _KEPT = 60.0, 20_000
"""How far the page's figures reach back, in time and in number."""
_FEW = 1000
"""Names that may be counted without anybody asking for the counts."""
_STEP = 2.0
"""Seconds of one point of the page's charts."""


class Metrics:
    """Counts requests and batches; safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Total("rmlora_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "rmlora_request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._batch = Histogram(
            "rmlora_batch_rows", "Rows of a batch.", ["bundle"], buckets=_ROWS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "rmlora_batch_seconds", "Time of computing a batch.", ["bundle"], buckets=_SECONDS, registry=self.registry
        )
        self._rows = Total("rmlora_rows", "Rows computed.", ["bundle", "model"], registry=self.registry)
        self._lock = threading.Lock()
        self._latencies = LatencyWindow(_KEPT)
        self._batches: deque[tuple[float, int]] = deque(maxlen=_KEPT)
        self._traffic: Counter[tuple[str, str]] = Counter()
        """Bundle and model → rows."""
        self._watched: Registry | None = None
        self._many = _FEW
        """Counts after which it is looked whether all are of what is served."""

    def watch(self, models: Registry) -> None:
        """Report queue and banks of ``models`` too, and forget the counts of what they serve no longer."""
        self._watched = models
        self.registry.register(_Graphs(models))

    def request(self, route: str, status: int, seconds: float, *, asked: bool) -> None:
        """Count a request; ``asked`` says that a model had to answer it."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if asked:
            with self._lock:
                self._latencies.add(time.monotonic(), seconds)

    def batch(self, bundle: str, rows: Sequence[Row], seconds: float) -> None:
        """Count a batch."""
        self._batch.labels(bundle).observe(len(rows))
        self._batch_seconds.labels(bundle).observe(seconds)
        per_model = Counter(row.adapter.partition("@")[0] if row.adapter else bundle for row in rows)
        for model, number in per_model.items():
            self._rows.labels(bundle, model).inc(number)
        with self._lock:
            self._batches.append((time.monotonic(), len(rows)))
            self._traffic.update({(bundle, model): number for model, number in per_model.items()})
        if len(self._traffic) > self._many:
            self._forget()

    def _forget(self) -> None:
        """Drop the counts of unloaded adapters: names come and go without end."""
        if self._watched is None:
            return
        served = {model.id for model in self._watched.models}
        with self._lock:
            for bundle, model in [pair for pair in self._traffic if pair[1] not in served]:
                del self._traffic[bundle, model]
                with suppress(KeyError):
                    self._rows.remove(bundle, model)
            self._many = 2 * len(self._traffic) + _FEW

    def text(self) -> bytes:
        """Return everything in Prometheus' format."""
        self._forget()
        return generate_latest(self.registry)

    def recent(self) -> dict[str, Any]:
        """Return what the page shows.

        Percentiles of latency (ms) and sizes of batches of the last minute, the same minute step by step, and rows by
        model since the start.
        """
        self._forget()
        now = time.monotonic()
        since = now - _KEPT_SECONDS
        with self._lock:
            kept = self._latencies.copy()
            sizes = [rows for when, rows in self._batches if when >= since]
            traffic = {model: number for (_, model), number in self._traffic.items()}
        latencies = kept.latencies(since)
        points = np.percentile(latencies, [50, 90, 99]) * 1e3 if len(latencies) else [None] * 3
        return {
            "seconds": _KEPT_SECONDS,
            "requests": len(latencies),
            "latency_ms": dict(
                zip(("p50", "p90", "p99"), (None if p is None else round(float(p), 2) for p in points), strict=True)
            ),
            "series": kept.series(now, step=_STEP, steps=round(_KEPT_SECONDS / _STEP)),
            "batches": dict(sorted(Counter(sizes).items())),
            "rows": traffic,
        }


class _Graphs(Collector):
    """Reads queues and banks when somebody asks."""

    def __init__(self, models: Registry) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("rmlora_queue_rows", "Rows that wait.", labels=["bundle"])
        known = GaugeMetricFamily("rmlora_adapters", "Adapters that can be named.", labels=["bundle"])
        resident = GaugeMetricFamily("rmlora_cached_adapters", "Adapters in memory.", labels=["bundle"])
        events = CounterMetricFamily("rmlora_adapter_cache", "What happened in the bank.", labels=["bundle", "event"])
        for name, graph in self._models.graphs.items():
            waiting.add_metric([name], graph.batcher.waiting)
            if (cache := graph.cache) is not None:
                known.add_metric([name], len(cache.names))
                resident.add_metric([name], len(cache.cached))
                for event in ("hits", "misses", "evictions"):
                    events.add_metric([name, event], getattr(cache, event))
        yield from (waiting, known, resident, events)
