"""What a server measures about itself: metrics for Prometheus, and the last minute for its page."""

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
_WINDOW_SECONDS, _WINDOW_SIZE = 60.0, 20_000
"""How far back the page's figures go, in time and in number of requests."""
_STEP_SECONDS = 2.0
"""Duration of one point of the page's charts."""
_MIN_NAMES = 1000
"""Counts of model names that are always kept until somebody reads them."""


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
            "rmlora_batch_seconds", "Time to compute a batch.", ["bundle"], buckets=_SECONDS, registry=self.registry
        )
        self._rows = Total("rmlora_rows", "Rows computed.", ["bundle", "model"], registry=self.registry)
        self._lock = threading.Lock()
        self._latencies = LatencyWindow(_WINDOW_SIZE)
        self._batches: deque[tuple[float, int]] = deque(maxlen=_WINDOW_SIZE)
        """When each batch ended, and its rows."""
        self._traffic: Counter[tuple[str, str]] = Counter()
        """Bundle and model → rows."""
        self._watched: Registry | None = None
        self._prune_above = _MIN_NAMES
        """Counts of unloaded adapters are dropped once there are more counts than this."""

    def watch(self, models: Registry) -> None:
        """Report the queues and adapter caches of ``models`` too, and drop the counts of models it no longer serves."""
        self._watched = models
        self.registry.register(_RunnerCollector(models))

    def request(self, route: str, status: int, seconds: float, *, asked: bool) -> None:
        """Count a request; ``asked`` is True if it was for a model."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if asked:
            with self._lock:
                self._latencies.add(time.monotonic(), seconds)

    def batch(self, bundle: str, rows: Sequence[Row], seconds: float) -> None:
        """Count a batch."""
        self._batch.labels(bundle).observe(len(rows))
        self._batch_seconds.labels(bundle).observe(seconds)
        per_model = Counter(bundle if row.adapter is None else str(row.adapter) for row in rows)
        for model, number in per_model.items():
            self._rows.labels(bundle, model).inc(number)
        with self._lock:
            self._batches.append((time.monotonic(), len(rows)))
            self._traffic.update({(bundle, model): number for model, number in per_model.items()})
        if len(self._traffic) > self._prune_above:
            self._prune()

    def _prune(self) -> None:
        """Drop the counts of unloaded adapters, whose names could otherwise grow without limit."""
        if self._watched is None:
            return
        served = {model.id for model in self._watched.models}
        with self._lock:
            for bundle, model in [pair for pair in self._traffic if pair[1] not in served]:
                del self._traffic[bundle, model]
                with suppress(KeyError):
                    self._rows.remove(bundle, model)
            self._prune_above = 2 * len(self._traffic) + _MIN_NAMES

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        self._prune()
        return generate_latest(self.registry)

    def recent(self) -> dict[str, Any]:
        """Return what the page shows.

        That is latency percentiles (ms) and batch sizes of the last minute, the same minute step by step, and the rows of
        each model since the start.
        """
        self._prune()
        now = time.monotonic()
        since = now - _WINDOW_SECONDS
        with self._lock:
            window = self._latencies.copy()
            sizes = [rows for ended, rows in self._batches if ended >= since]
            traffic = {model: number for (_, model), number in self._traffic.items()}
        latencies = window.latencies(since)
        points = np.percentile(latencies, [50, 90, 99]) * 1e3 if len(latencies) else [None] * 3
        return {
            "seconds": _WINDOW_SECONDS,
            "requests": len(latencies),
            "latency_ms": dict(
                zip(("p50", "p90", "p99"), (None if p is None else round(float(p), 2) for p in points), strict=True)
            ),
            "series": window.series(now, step=_STEP_SECONDS, steps=round(_WINDOW_SECONDS / _STEP_SECONDS)),
            "batches": dict(sorted(Counter(sizes).items())),
            "rows": traffic,
        }


class _RunnerCollector(Collector):
    """Reads queues and adapter caches when metrics are asked for."""

    def __init__(self, models: Registry) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("rmlora_queue_rows", "Rows in the queue.", labels=["bundle"])
        adapters = GaugeMetricFamily("rmlora_adapters", "Adapters registered.", labels=["bundle"])
        cached = GaugeMetricFamily("rmlora_cached_adapters", "Adapters in the cache.", labels=["bundle"])
        events = CounterMetricFamily("rmlora_adapter_cache", "Adapter cache events.", labels=["bundle", "event"])
        unavailable = GaugeMetricFamily(
            "rmlora_unavailable_models", "Models that cannot be used because their files changed.", labels=["bundle"]
        )
        self._models.look_again()
        lost = Counter(model.runner.name for model in self._models.models if not self._models.available(model))
        seconds = GaugeMetricFamily(
            "rmlora_queue_seconds", "Estimated time to compute all that was accepted.", labels=["bundle"]
        )
        workers = GaugeMetricFamily("rmlora_workers", "Threads that compute batches.", labels=["bundle"])
        failures = CounterMetricFamily(
            "rmlora_worker_failures", "Failures of these threads; each is started again.", labels=["bundle"]
        )
        refused = CounterMetricFamily("rmlora_refused", "Requests refused because of the load.", labels=["bundle"])
        for name, runner in self._models.runners.items():
            unavailable.add_metric([name], lost[name])
            waiting.add_metric([name], runner.queue.waiting)
            seconds.add_metric([name], runner.queue.seconds)
            workers.add_metric([name], runner.queue.alive)
            failures.add_metric([name], runner.queue.failures)
            refused.add_metric([name], runner.queue.admission.refused)
            if (cache := runner.cache) is not None:
                adapters.add_metric([name], len(cache.names))
                cached.add_metric([name], len(cache.cached))
                for event in ("hits", "misses", "evictions"):
                    events.add_metric([name, event], getattr(cache, event))
        yield from (waiting, seconds, workers, failures, refused, adapters, cached, events, unavailable)
