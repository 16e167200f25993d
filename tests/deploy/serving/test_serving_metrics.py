"""Prometheus metrics: every figure is present and correct, and clients cannot make the number of series grow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rmlora_deploy.runtime.adapters.adapter_ref import AdapterKey
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.queue import Row
from tests.helpers.servers import Server, ask, classify, serving

Sample = tuple[str, frozenset[tuple[str, str]]]


def read(text: str) -> dict[Sample, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(server: Server) -> dict[Sample, float]:
    answer = ask(server.url, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return read(answer.text)


def value(samples: dict[Sample, float], name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def server(served: dict[str, Path]) -> Iterator[Server]:
    with serving(served, adapter_dirs=(served["many"].parent,), max_active_adapters=2) as running:
        yield running


def test_every_figure_is_there(server: Server) -> None:
    classify(server.url, "one", "w1", "w2")
    for name in ("two", "three", "three", "one"):
        classify(server.url, name, "w1")
    ask(server.url, "/classify", {"model": "words", "input": []})
    seen = scrape(server)
    assert value(seen, "rmlora_requests_total", route="/classify", status="200") == 5
    assert value(seen, "rmlora_requests_total", route="/classify", status="400") == 1
    assert value(seen, "rmlora_request_seconds_count", route="/classify") == 6
    assert 0 < value(seen, "rmlora_request_seconds_sum", route="/classify") < 60
    assert value(seen, "rmlora_batch_rows_sum", bundle="many") == 6
    assert value(seen, "rmlora_batch_seconds_count", bundle="many") == value(
        seen, "rmlora_batch_rows_count", bundle="many"
    )
    assert [value(seen, "rmlora_rows_total", bundle="many", model=name) for name in ("one", "two", "three")] == [
        3,
        1,
        2,
    ]
    assert value(seen, "rmlora_queue_rows", bundle="words") == 0
    assert value(seen, "rmlora_adapters", bundle="many") == 3
    assert value(seen, "rmlora_cached_adapters", bundle="many") == 2
    events = {
        event: value(seen, "rmlora_adapter_cache_total", bundle="many", event=event)
        for event in ("hits", "misses", "evictions")
    }
    assert events == {"hits": 2, "misses": 4, "evictions": 2}


def test_clients_cannot_add_series(server: Server) -> None:
    def visit(turn: int) -> None:
        for path in (f"/nowhere{turn}", f"/v1/models/none{turn}", f"/v2/models/none{turn}", f"/static/none{turn}.js"):
            assert ask(server.url, path).status == 404
        assert ask(server.url, "/classify", {"model": f"none{turn}", "input": "w1"}).status == 404
        ask(server.url, "/healthz", method="OPTIONS")
        ask(server.url, f"/healthz?turn={turn}", x_request_id=f"turn{turn}")

    visit(0)
    scrape(server)
    before = set(scrape(server))
    for turn in range(1, 5):
        visit(turn)
    assert set(scrape(server)) == before


def test_what_is_unloaded_is_counted_no_longer(server: Server) -> None:
    classify(server.url, "one", "w1")
    for turn in range(3):
        name = f"guest{turn}"
        assert ask(server.url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": "two"}).status == 200
        classify(server.url, name, "w1")
        assert value(scrape(server), "rmlora_rows_total", bundle="many", model=name) == 1
        assert ask(server.url, "/stats").body["rows"][name] == 1
        assert ask(server.url, "/v1/unload_lora_adapter", {"lora_name": name}).status == 200
    assert not any("guest" in label for _, labels in scrape(server) for _, label in labels)
    assert ask(server.url, "/stats").body["rows"] == {"one": 1}


def test_counts_stay_few_although_nobody_reads_them(served: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmlora_deploy.serving.metrics._MIN_NAMES", 10)
    with serving({"words": served["words"]}) as running:
        assert running.registry is not None
        metrics = Metrics()
        metrics.watch(running.registry)
        for number in range(100):
            metrics.batch(
                "words",
                [Row({"x": np.zeros(1)}, AdapterKey(f"name{number}", number), 0), Row({"x": np.zeros(1)}, None, 0)],
                0.1,
            )
            assert len(metrics._traffic) <= 14
        assert value(read(metrics.text().decode()), "rmlora_rows_total", bundle="words", model="words") == 100


def test_rows_are_counted_by_name_whatever_the_generation() -> None:
    metrics = Metrics()
    for generation in (1, 2):
        metrics.batch("many", [Row({"x": np.zeros(1)}, AdapterKey("spam", generation), 0)], 0.1)
    assert value(read(metrics.text().decode()), "rmlora_rows_total", bundle="many", model="spam") == 2
    assert metrics.recent()["rows"] == {"spam": 2}
