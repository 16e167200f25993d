"""The quality study: what is planned next, how runs are compared, and that the page says what the runs say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import study
from benchmarks.quality.campaign import Campaign, chosen_learning_rate
from benchmarks.quality.comparison import Difference, compare, sign_test
from benchmarks.quality.methods import HEADLINE, MASKED, METHODS
from benchmarks.quality.page import chosen_rates, write_page
from benchmarks.quality.rank_correlation import rank_correlation
from benchmarks.quality.store import RunStore
from benchmarks.quality.study import LEARNING_RATES, RunSpec
from benchmarks.quality.verdict import first_paragraph
from rmlora.errors import InputError


def record(score: float, validation: float | None = None) -> dict[str, object]:
    return {
        "validation_score": score if validation is None else validation,
        "validation_loss": 1.0,
        "test_score": score,
        "test_loss": 1.0,
        "effective_rank": 4.0,
        "trainable_parameters": 10,
        "steps": 3,
        "seconds": 2.0,
        "device": "cpu",
    }


def filled(path: Path, gains: dict[str, float]) -> RunStore:
    """Return a store in which every method of the headline has its gain over plain LoRA, on two tasks."""
    store, draw = RunStore(path), np.random.default_rng(0)
    for task in ("trec", "tweets"):
        for seed in (0, 1, 2):
            noise = draw.normal(0, 0.002)
            for method in (*HEADLINE, *MASKED):
                for rate in LEARNING_RATES if seed == 0 else LEARNING_RATES[:1]:
                    gain = gains.get(method, 0.0) + draw.normal(0, 0.0005)
                    store.add(
                        RunSpec(task, 200, method, rate, seed),
                        record(0.8 + noise + gain, 0.9 if rate == LEARNING_RATES[0] else 0.5),
                    )
    return store


def test_a_store_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    spec = RunSpec("trec", 200, "lora", 1e-3, 0)
    RunStore(path).add(spec, record(0.5))
    with open(path, "a") as file:
        file.write('{"task": "trec", "si')
    store = RunStore(path)
    assert list(store) == [spec]
    assert store[spec]["test_score"] == 0.5
    other = dataclasses.replace(spec, seed=1)
    store.add(other, record(0.6))
    assert set(RunStore(path)) == {spec, other}
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(InputError, match="Line 1 of .* is not a run"):
        RunStore(path)


def test_rates_are_chosen_before_other_seeds_run(tmp_path: Path) -> None:
    campaign = Campaign(["trec", "tweets", "digits"], [200], ["lora"], [0, 1], learning_rates=(1e-3, 1e-2))
    store = RunStore(tmp_path / "runs.jsonl")
    first = campaign.to_do(store)
    assert {spec.seed for spec in first} == {0}
    assert len(first) == 6
    for spec in first:
        better = 1e-2 if spec.task != "digits" else 1e-3
        store.add(spec, record(0.9 if spec.learning_rate == better else 0.8))
    second = campaign.to_do(store)
    assert {(spec.task, spec.learning_rate, spec.seed) for spec in second} == {
        ("trec", 1e-2, 1),
        ("tweets", 1e-2, 1),
        ("digits", 1e-3, 1),
    }
    assert chosen_learning_rate(store, "trec", 200, "lora", 1, (1e-3, 1e-2)) is None
    noisy = dataclasses.replace(campaign, label_noise=0.1, rate_factor=3.0)
    assert {(spec.learning_rate, spec.label_noise) for spec in noisy.to_do(store)} == {(3e-2, 0.1), (3e-3, 0.1)}


def test_a_size_beyond_the_data_is_not_run_twice() -> None:
    assert study.sizes_of("topics") == (200, study.ALL)
    assert study.sizes_of("trec") == tuple(study.SIZES)


def test_differences_and_their_intervals() -> None:
    cell = Difference("trec", 200, (1.0, 2.0, 3.0))
    assert cell.mean == pytest.approx(2.0)
    assert cell.half_width == pytest.approx(4.303 / 3**0.5)
    assert cell.verdict == "tie"
    assert Difference("trec", 200, (1.0, 1.1, 1.2)).verdict == "better"
    assert Difference("trec", 200, (-1.0, -1.1, -1.2)).verdict == "worse"
    assert Difference("trec", 200, (1.0,)).verdict == "tie"
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(3, 3) == 1.0
    assert sign_test(0, 0) == 1.0


def test_rank_correlation_shares_ranks() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)
    assert rank_correlation([1, 1], [1, 2]) == 0


@pytest.mark.parametrize(("gain", "opening"), [(0.01, "generalizes better"), (-0.01, "does not reliably")])
def test_the_page_opens_with_what_was_found(tmp_path: Path, gain: float, opening: str) -> None:
    store = filled(tmp_path / "runs.jsonl", {"rmlora": gain})
    page = write_page(store, tmp_path).read_text()
    assert page.splitlines()[4].startswith("**Preliminary: 6 of ")
    assert f"in {2 if gain > 0 else 0} of 2 cells" in page
    assert (tmp_path / "images" / "evidence" / "differences.svg").is_file()
    chosen = chosen_rates(store)
    result, masked = (
        compare(store, *pair, chosen, (0, 1, 2)) for pair in (("rmlora", "lora"), ("rmlora-k4", "lora-r4"))
    )
    assert result.mean == pytest.approx(100 * gain, abs=0.15)
    assert result.count("better" if gain > 0 else "worse") == 2
    assert opening in first_paragraph(result, masked, planned=6)
    assert "With half of its directions masked" in page
    assert "## By learning rate" not in page  # most tasks have not run


def test_the_page_shows_what_is_left_after_training(tmp_path: Path) -> None:
    store = filled(tmp_path / "quality.jsonl", {})
    after = RunStore(tmp_path / "quality_after.jsonl")
    for method, score in (("lora", 0.9), ("rmlora", 0.8)):
        figures = {"score": score, "bytes": 1234}
        after.add(RunSpec("trec", 1000, method, 1e-3, 0), {"ranks": {"8": figures}, "precisions": {"int8": figures}})
    page = write_page(store, tmp_path).read_text()
    assert "| rank 8 | 1,234 | 90.0 | 80.0 |" in page
    assert "| int8 | 1,234 | 90.0 | 80.0 |" in page


def test_the_page_shows_how_the_defaults_were_chosen(tmp_path: Path) -> None:
    store = filled(tmp_path / "quality.jsonl", {})
    selection = RunStore(tmp_path / "quality_selection.jsonl")
    for task in study.SELECTION:
        selection.add(RunSpec(task, 200, "lora", 1e-3, 0), record(0.5))
    selection.add(RunSpec("health", 200, "lora", 2e-3, 0), record(0.9))  # the other tasks are missing
    page = write_page(store, tmp_path).read_text()
    assert "| 200 | LoRA | 50.0 |  |" in page.split("## How the defaults were chosen")[1]


def test_the_page_without_runs_says_how_to_make_them(tmp_path: Path) -> None:
    page = write_page(RunStore(tmp_path / "none.jsonl"), tmp_path).read_text()
    assert "make bench-quality" in page


@pytest.mark.e2e
@pytest.mark.rare
def test_every_method_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.quality import train_run

    schedule = {32: study.Schedule(1, 16)}
    monkeypatch.setattr(train_run, "SIZES", schedule)
    monkeypatch.setattr(train_run, "VALIDATION", 32)
    small = dataclasses.replace(study.REPORTED["trec"], test=32)
    monkeypatch.setattr(train_run, "study_task", lambda name: small if name == "trec" else study.REPORTED[name])
    figures = {name: train_run.train_run(RunSpec("trec", 32, name, 1e-3, 0), tmp_path) for name in METHODS}
    for name, values in figures.items():
        assert values["steps"] == 2, name
        assert 0 <= values["test_score"] <= 1, name
        assert np.isfinite(values["test_loss"]), name
    assert figures["lora-r4"]["trainable_parameters"] < figures["lora"]["trainable_parameters"]
    noisy = train_run.train_run(RunSpec("trec", 32, "rmlora", 1e-3, 0, 0.5), tmp_path)
    assert noisy["test_loss"] != figures["rmlora"]["test_loss"]
