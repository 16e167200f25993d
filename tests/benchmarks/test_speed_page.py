"""The page of speeds, from small results: what it says of losses, of missing figures and of floors is computed."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest import ROOT, Contestant, Table, summarize
from benchmarks.results import RESULTS
from benchmarks.speed_page.adapt import as_table
from benchmarks.speed_page.page import read_results, render_page, write_page
from benchmarks.speed_page.sections import SECTIONS
from benchmarks.speed_page.tables import render_table
from benchmarks.speed_page.verdicts import judge, sentences


def result(
    ours: tuple[float, ...], peer: tuple[float, ...], *, better: str = "lower", others: float = 0.0, axis: str = ""
) -> dict[str, Any]:
    """Return a results file with one row of ours, one of a peer, one that is missing, and a floor."""
    column = "8 × 32" if not axis else "8"
    table = Table("encoder_speed", "Encoders", "ms", "ours, fp32", [column], better, "A note.", axis=axis)  # type: ignore[arg-type]
    contestants = [
        Contestant("ours, fp32", group="fp32"),
        Contestant("OpenVINO", kind="peer", group="fp32"),
        Contestant("CTranslate2", kind="peer", group="fp32", missing="it is not | installed"),
        Contestant("floor: products", kind="floor", group="fp32"),
    ]
    runs = {
        name: [{"figures": {column: value}, "others_share": others, "versions": {"numpy": "2.4"}} for value in values]
        for name, values in (("ours, fp32", ours), ("OpenVINO", peer), ("floor: products", tuple(0.5 for _ in ours)))
    }
    rows = summarize(contestants, runs, {"CTranslate2": "it is not | installed"}, table)
    environment = {"command": "python -m benchmarks.encoder_speed", "processor": "A CPU", "cores": 2, "gpus": []}
    return {"table": asdict(table), "environment": environment, "settings": {"rounds": len(ours)}, "rows": rows}


@pytest.mark.parametrize(
    ("ours", "peer", "better", "outcome"),
    [
        ((2.0, 2.2), (1.0, 1.0), "lower", "slower"),
        ((1.0, 1.0), (2.0, 2.2), "lower", "faster"),
        ((1.0, 2.2), (1.1, 2.0), "lower", "level"),
        ((100.0, 110.0), (200.0, 200.0), "higher", "slower"),
        ((200.0, 200.0), (100.0, 110.0), "higher", "faster"),
    ],
)
def test_a_verdict_needs_every_round_to_agree(
    ours: tuple[float, ...], peer: tuple[float, ...], better: str, outcome: str
) -> None:
    (verdict,) = judge(result(ours, peer, better=better))
    assert verdict.outcome == outcome
    assert (verdict.ratio < 1) == (outcome == "faster") or outcome == "level"


def test_one_round_decides_nothing() -> None:
    assert judge(result((2.0,), (1.0,))) == []


def test_a_loss_is_said_in_the_section_and_at_the_top() -> None:
    losing = result((2.0, 2.2), (1.0, 1.0))
    assert next(sentences(judge(losing))) == (
        "**fp32: a peer is faster.** Our time against the fastest peer's: 8 × 32: 2.10 × OpenVINO."
    )
    page = render_page({"encoder_speed": losing})
    assert "| one encoder, fp32, 8 × 32 | OpenVINO | 2.10 |" in page
    assert "**fp32: a peer is faster.**" in page


def test_without_a_loss_the_page_says_so() -> None:
    page = render_page({"encoder_speed": result((1.0, 1.0), (2.0, 2.2))})
    assert "Nowhere, of what is measured, in every round." in page
    assert "fp32: ours is fastest (8 × 32: 0.48 × OpenVINO)." in page


def test_missing_results_name_their_command() -> None:
    page = render_page({})
    for section in SECTIONS:
        assert f"## {section.title}" in page
        assert f"Not measured yet: run `python -m benchmarks.{section.module}`." in page
    assert "encoder_speed_cuda" not in page


def test_a_result_of_an_older_form_is_named() -> None:
    assert "`benchmarks/results/training_step.json` is of an older form" in render_page({"training_step": {"lora": 1}})


def test_the_table_has_medians_ranges_ratios_reasons_and_floors() -> None:
    lines = render_table(result((2.0, 2.2, 2.4), (1.0, 1.0, 1.0))).splitlines()
    assert lines[0] == "| ms (× ours, fp32) | 8 × 32 |"
    assert lines[2] == "| ours, fp32 | 2.20 [2.00, 2.40] × 1.00 |"
    assert lines[3] == "| OpenVINO | **1.00** [1.00, 1.00] × 0.45 |"
    assert lines[4] == "| CTranslate2 | not measured: it is not \\| installed |"
    assert lines[5].startswith("| *floor: products* | 0.50")


def test_what_the_answers_are_worth_stands_beside_the_speed() -> None:
    found = result((1.0, 1.0), (2.0, 2.0))
    found["rows"][0] |= {"accuracy": 0.99, "logit_error": 0.002}
    lines = render_table(found).splitlines()
    assert lines[0].endswith("| accuracy | rms logit error |")
    assert lines[2].endswith("| 0.9900 | 2.0e-03 |") and lines[3].endswith("|  |  |")


def test_a_busy_machine_is_marked() -> None:
    page = render_page({"encoder_speed": result((1.0,), (2.0,), others=0.4)})
    assert "| ours, fp32† |" in page and "† Other programs used more than 10%" in page


def test_write_page_draws_bars_and_curves(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "encoder_speed.json").write_text(json.dumps(result((1.0, 1.1), (2.0, 2.2))))
    (results / "growth_rows.json").write_text(json.dumps(result((1.0, 1.1), (2.0, 2.2), axis="rows")))
    (results / "branches.json").write_text(json.dumps({"rows": []}))  # another benchmark's
    page = write_page(results, tmp_path / "docs" / "speed.md").read_text(encoding="utf-8")
    for name in ("encoder_speed", "growth_rows"):
        assert f"images/speed/{name}.png" in page
        assert (tmp_path / "docs" / "images" / "speed" / f"{name}.png").stat().st_size > 1000


def test_the_page_is_the_one_that_the_results_give() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert page == render_page(read_results(RESULTS)), "run  python -m benchmarks.speed_page"
    for image in re.findall(r"\]\((images/\S+)\)", page):
        assert (ROOT / "docs" / image).is_file()


def test_the_turns_of_a_shared_machine_become_a_table() -> None:
    turns = {"alone | normal": [{"requests_per_second": 200.0}], "busy | normal": [{"requests_per_second": 100.0}]}
    found = as_table("shared_machine", {"runs": {"default": turns}, "environment": {}, "settings": {"rounds": 1}})
    assert found["table"]["columns"] == ["alone", "busy"]
    (row,) = found["rows"]
    assert row["name"] == "default, normal" and row["figures"]["busy"]["median"] == 100.0


def test_merging_and_providers_become_tables() -> None:
    def row(seconds: float, ratio: float, peak: float | None) -> dict[str, Any]:
        around = {"seconds_range": [seconds - 0.1, seconds + 0.1], "ratio_range": [ratio, ratio]}
        return {"seconds": seconds, "ratio_to_copy": ratio, "cpu_seconds": 2.0, "peak_mb": peak, **around}

    about = {"environment": {}, "settings": {"dtype": "BF16", "rounds": 2}, "checkpoint_gb": 2.55}
    rows = {"copy": row(1.0, 1.0, None), "ours, with torch": row(3.0, 3.0, 250.0), "PEFT": row(2.0, 2.0, 2900.0)}
    merging = as_table("merge_speed", {**about, "product_floor_seconds": 0.3, "rows": rows})
    assert [(item.column, item.outcome) for item in judge(merging)] == [("seconds", "slower")]
    assert "| *copy* | 1.00 [0.90, 1.10] × 1.00 | 2.00 | – |" in render_table(merging)
    providers = {
        "cpu, fp32": {"8 × 32": {"ms": 10.0, "ratio": 1.0}},
        "openvino, bf16": {"not_measured": "not in the build"},
    }
    table = render_table(as_table("provider_speed", {**about, "providers": providers}))
    assert "| openvino, bf16 | not measured: not in the build |" in table
