"""Aggregates the figures of all replicas into those of the application (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["merge_metrics", "merge_stats"]


def merge_metrics(texts: Mapping[str, str]) -> bytes:
    """Return the replicas' metrics as one text in Prometheus' format; every sample gets the label ``replica``."""
    families: dict[str, Metric] = {}
    for replica, text in sorted(texts.items()):
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            merged.samples += [item._replace(labels={**item.labels, "replica": replica}) for item in family.samples]
    registry = CollectorRegistry()
    registry.register(_Families(list(families.values())))
    return generate_latest(registry)


class _Families(Collector):
    """Returns metrics that were collected elsewhere."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def merge_stats(stats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the stats of one or more replicas as one: counts are added up, of latencies the highest is taken.

    Percentiles cannot be added. The slowest replica's are those that matter to somebody who looks for a problem.
    """
    batches, rows = Counter[str](), Counter[str]()
    for item in stats:
        batches.update(item["batches"])
        rows.update(item["rows"])
    points = stats[0]["latency_ms"]
    series = [item["series"] for item in stats]
    return {
        **stats[0],
        "requests": sum(item["requests"] for item in stats),
        "latency_ms": {point: _highest([item["latency_ms"][point] for item in stats]) for point in points},
        "series": {
            "step": series[0]["step"],
            "requests": [_sum(values) for values in zip(*(item["requests"] for item in series), strict=True)],
            **{
                point: [_highest(values) for values in zip(*(item[point] for item in series), strict=True)]
                for point in points
            },
        },
        "batches": dict(sorted(batches.items(), key=lambda pair: int(pair[0]))),
        "rows": dict(rows),
        "waiting": sum(item["waiting"] for item in stats),
        "unavailable": max(item["unavailable"] for item in stats),
        "newest_model": max(item["newest_model"] for item in stats),
        "replicas": len(stats),
    }


def _highest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
