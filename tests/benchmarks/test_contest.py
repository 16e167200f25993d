"""The frame of the tables of speeds: turns, medians, ratios, and contestants that cannot run. No test measures time."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import contest
from benchmarks.contest import (
    ROOT,
    Contestant,
    ContestantError,
    Table,
    measure,
    run_worker,
    save_table,
    summarize,
    take_turns,
)

TABLE = Table("some", "Some table", "ms", "a", ["x"])


def program(text: str) -> tuple[str, ...]:
    """Return the command of a worker that is this program."""
    return (sys.executable, "-c", f"import json, os, sys\njob = json.load(sys.stdin)\n{text}")


ECHO = program("print('a library says hello'); print(json.dumps({'figures': {'x': job['value']}}))")


def options(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"rounds": 2, "seconds": 0.0, "only": None, "quick": False, **more})


def test_the_order_alternates_from_round_to_round() -> None:
    order: list[str] = []
    take_turns(["a", "b", "c"], 3, order.append)
    assert order == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]


def test_a_contestant_that_fails_is_left_out_of_the_following_rounds_and_stops_nobody() -> None:
    tried: list[str] = []

    def run(name: str) -> int:
        tried.append(name)
        if tried.count("b") == 2 and name == "b":
            raise ContestantError("no memory")
        return len(tried)

    runs, failures = take_turns(["a", "b"], 4, run)
    assert failures == {"b": "no memory"}
    assert list(runs) == ["a"] and len(runs["a"]) == 4
    assert tried == ["a", "b", "b", "a", "a", "a"]


def test_medians_ranges_and_ratios_within_rounds() -> None:
    runs = {
        "a": [{"figures": {"x": value}, "others_share": 0.0} for value in (10.0, 20.0, 40.0)],
        "b": [{"figures": {"x": value}, "others_share": share, "versions": {"numpy": "2"}} for value, share in ((20.0, 0.1), (30.0, 0.3), (40.0, 0.2))],
    }  # fmt: skip
    rows = summarize([Contestant("a"), Contestant("b", kind="peer", group="fp32")], runs, {}, TABLE)
    figure = rows[1]["figures"]["x"]
    assert figure["median"] == 30.0 and figure["range"] == [20.0, 40.0]
    assert figure["ratio"] == 1.5 and figure["ratio_range"] == [1.0, 2.0]  # of 2, 1.5 and 1: not 30 / 20 by chance
    assert rows[1]["others_share"] == 0.3 and rows[1]["versions"] == {"numpy": "2"}
    assert (rows[1]["kind"], rows[1]["group"]) == ("peer", "fp32")


def test_every_contestant_has_a_row_with_figures_or_a_reason() -> None:
    contestants = [
        Contestant("a", ECHO, {"value": 2.0}),
        Contestant("fails", program("sys.exit('no such model')"), {"value": 1.0}, "peer"),
        Contestant("absent", kind="peer", missing="it is not installed"),
    ]
    a, fails, absent = measure(contestants, options(), TABLE)
    assert a["figures"]["x"]["rounds"] == [2.0, 2.0]
    assert fails["not_measured"] == "its process failed: no such model"
    assert absent["not_measured"] == "it is not installed"


def test_only_measures_what_is_named() -> None:
    contestants = [Contestant("ours", ECHO, {"value": 2.0}), Contestant("theirs", ECHO, {"value": 1.0})]
    ours, theirs = measure(contestants, options(only=["our"]), TABLE)
    assert "figures" in ours and theirs["not_measured"] == "left out by --only"


def test_a_worker_is_pinned_and_told_its_threads() -> None:
    text = "print(json.dumps({'figures': {'x': 0}, 'cores': len(os.sched_getaffinity(0)), 'threads': job['threads']}))"
    before = os.sched_getaffinity(0)
    report = run_worker(Contestant("a", program(text), threads=1))
    assert report["cores"] == report["threads"] == 1
    assert os.sched_getaffinity(0) == before


def test_the_wall_time_of_a_process_can_be_the_figure() -> None:
    report = run_worker(Contestant("a", program("print(json.dumps({'figures': {}}))"), wall="start"))
    assert report["figures"]["start"] > 0


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (program("print('no report')"), "exit code 0"),
        (program("os.kill(os.getpid(), 9)"), "SIGKILL"),
        (("/no/such/python",), "/no/such/python"),
    ],
)
def test_a_process_without_a_report_is_named(command: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ContestantError, match=reason):
        run_worker(Contestant("a", command))


def test_a_reason_names_no_path_of_this_machine() -> None:
    with pytest.raises(ContestantError, match="^its process failed: no build/peers/x$"):
        run_worker(Contestant("a", program(f"sys.exit('no {ROOT}/build/peers/x')")))


def test_quick_figures_never_replace_the_committed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(contest, "QUICK_RESULTS", tmp_path / "quick")
    rows = measure([Contestant("a", ECHO, {"value": 2.0})], options(), TABLE)
    path = save_table(TABLE, rows, options(quick=True))
    assert path == tmp_path / "quick" / "some.json" and not (tmp_path / "results").exists()
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["table"]["columns"] == ["x"] and written["settings"]["quick"] is True
    assert written["rows"][0]["figures"]["x"]["median"] == 2.0


def test_quick_leaves_out_what_says_so_and_the_last_round_gets_more_to_do() -> None:
    text = "print(json.dumps({'figures': {'x': 0}, 'asked': job.get('check', False)}))"
    contestants = [Contestant("a", program(text)), Contestant("slow", program(text), quick=False)]
    a, slow = measure(contestants, options(quick=True), TABLE, last={"check": True})
    assert a["asked"] is True and len(a["figures"]["x"]["rounds"]) == 2
    assert slow["not_measured"] == "left out by --quick"
    asked = [run_worker(contestants[0], more=more)["asked"] for more in (None, {"check": True})]
    assert asked == [False, True]
