"""The latency window: intervals move without changing, each has its percentiles, and overwritten ones are unknown."""

from __future__ import annotations

import numpy as np

from rmlora_deploy.serving.latency_window import LatencyWindow


def test_each_interval_has_its_requests_and_percentiles() -> None:
    recent = LatencyWindow(1000)
    for number in range(100):
        recent.add(10.0 + number / 100, (number + 1) / 1000)  # 1 … 100 ms, within [10, 12)
    recent.add(12.5, 0.5)
    made = recent.series(14.1, step=2.0, steps=3)
    assert made["requests"] == [0, 100, 1]
    assert made["p50"] == [None, 50.0, 500.0]
    assert made["p90"] == [None, 90.0, 500.0]
    assert made["p99"] == [None, 99.0, 500.0]


def test_intervals_move_with_time_and_do_not_change() -> None:
    recent = LatencyWindow(1000)
    for when in np.linspace(0.0, 30.0, 200):
        recent.add(float(when), float(when) / 1000)
    early, late = recent.series(30.0, step=2.0, steps=10), recent.series(35.9, step=2.0, steps=10)
    for key in ("requests", "p50", "p90", "p99"):
        assert late[key][:8] == early[key][2:]


def test_what_was_overwritten_is_unknown_and_not_zero() -> None:
    recent = LatencyWindow(100)
    for number in range(1000):
        recent.add(number / 50, 0.001)  # 20 s at 50/s: the last two seconds are kept
    made = recent.series(20.0, step=1.0, steps=20)
    assert made["requests"][:18] == [None] * 18
    assert made["requests"][19] == 50
    assert made["p50"][:18] == [None] * 18
    assert len(recent.latencies(19.0)) == 50


def test_an_empty_past_is_zero_requests_without_percentiles() -> None:
    made = LatencyWindow(10).series(1000.0, step=2.0, steps=2)
    assert made == {"step": 2.0, "requests": [0, 0], "p50": [None] * 2, "p90": [None] * 2, "p99": [None] * 2}
    assert not len(LatencyWindow(10).latencies(0.0))
