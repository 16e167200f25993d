"""Measuring bundles: what is measured, what is not and why, fairness, and errors raised before minutes are spent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from PIL import Image

from rmlora.errors import ConfigError, InputError, ProviderError
from rmlora_deploy.bench import rounds, worker, worker_process
from rmlora_deploy.bench.bench_inputs import longest_text, random_inputs
from rmlora_deploy.bench.bench_plan import BatchShape, BenchSettings, Contestant, list_contestants
from rmlora_deploy.bench.bench_plot import plot_bench
from rmlora_deploy.bench.machine import OthersWatch, describe_machine, peak_mb, pin, resident_mb, usable_cores
from rmlora_deploy.bench.rounds import run_bench
from rmlora_deploy.bench.summary import summarize
from rmlora_deploy.bench.worker_process import Job, run_job
from rmlora_deploy.bundles.bundle import MODEL_FILE, Bundle
from rmlora_deploy.bundles.manifest import TensorEntry
from rmlora_deploy.runtime import providers
from tests.helpers.bundles import make_bundle
from tests.helpers.cli import fails, run, run_process
from tests.helpers.handmade import color_bundle, word_bundle

QUICK = ("--batch", "1,3", "--length", "4,8", "--threads", "1", "--rounds", "2", "--seconds", "0.01", "--warmup", "1")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_bundle(tmp_path_factory.mktemp("bench") / "words")


def fake_run(
    *milliseconds: float, logits: float = 1.0, others_share: float | None = 0.0, **changes: Any
) -> dict[str, Any]:
    """Return the result of a worker that measured these medians."""
    figures = [
        {
            "p50_ms": ms,
            "p90_ms": 2 * ms,
            "p99_ms": 3 * ms,
            "rows_per_second": 1e3 / ms,
            "samples": 5,
            "others_share": others_share,
        }
        for ms in milliseconds
    ]
    rest = {"how": "fast", "pinned": True, "load_seconds": 1.0, "loaded_mb": 50.0, "peak_mb": 60.0}
    return {**rest, "figures": figures, "logits": [[logits, -2.0]], **changes}


@pytest.fixture
def fake_workers(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Replace the worker processes by fixed results, on four cores, with PyTorch installed; return the list of their jobs."""
    jobs: list[Job] = []

    def result_of(job: Job) -> dict[str, Any]:
        jobs.append(job)
        return fake_run(*[2.0 if job.engine == "onnx" else 6.0] * len(job.shapes))

    monkeypatch.setattr(rounds, "run_job", result_of)
    monkeypatch.setattr(rounds, "usable_cores", lambda: (3, 5, 7, 9))
    monkeypatch.setattr(rounds, "_torch_missing", lambda bundle, base, adapter: None)
    return jobs


def test_onnx_runtime_and_pytorch_are_measured_on_a_real_export(tmp_path: Path) -> None:
    make_bundle("bert", tmp_path)
    picture, report = tmp_path / "bench.png", tmp_path / "bench.json"
    done = run_process("bench", tmp_path / "bundle", *QUICK, "--rounds", "1", "--plot", picture, "--output", report)
    assert done.code == 0, done.stderr
    result = json.loads(report.read_text())
    measured = {row["engine"] for row in result["rows"]}
    assert measured == {"onnx", "torch"}
    assert {(row["rows"], row["tokens"]) for row in result["rows"]} == {(1, 4), (1, 8), (3, 4), (3, 8)}
    for row in result["rows"]:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["p50_ms_range"][0] <= row["p50_ms"] <= row["p50_ms_range"][1]
        assert ("speed_over_torch" in row) == (row["engine"] == "onnx")
    for item in result["contestants"]:
        if item["engine"] == "onnx" and item["provider"] == "cpu":
            assert item["relative_error"] < 1e-4  # the same function was timed
            assert item["pinned"]
            assert 0 < item["loaded_mb"] <= item["peak_mb"]
        if item["engine"] == "torch":
            assert item["how"] == "float32, sdpa, inference mode"
    packages = result["environment"]["packages"]
    assert ort.__version__ in (packages.get("onnxruntime"), packages.get("onnxruntime-gpu"))
    assert result["settings"]["seed"] == 0
    assert result["command"].startswith("rmlora-deploy")
    assert "ONNX Runtime coreml (not in the installed ONNX Runtime)" in " ".join(done.stdout.split())
    assert np.asarray(Image.open(picture)).std() > 10


def test_without_base_and_adapter_pytorch_is_listed_with_the_reason(words: Path) -> None:
    done = run("bench", words, *QUICK, "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    torch = next(item for item in result["contestants"] if item["engine"] == "torch")
    assert torch["not_measured"] == "the adapter no-such-adapter is not there: pass --adapter"
    absent = {
        item["provider"] for item in result["contestants"] if "not in the installed" in item.get("not_measured", "")
    }
    assert "coreml" in absent


def test_images_have_no_length(tmp_path: Path) -> None:
    done = run("bench", color_bundle(tmp_path / "colors"), *QUICK, "--json")
    assert done.code == 0, done.stderr
    assert [(row["rows"], row["tokens"]) for row in json.loads(done.stdout)["rows"]] == [(1, None), (3, None)]


def test_contestants_take_turns_on_the_same_cores(words: Path, fake_workers: list[Job]) -> None:
    settings = BenchSettings(threads=(1, 3), rounds=2, batches=(1,), lengths=(4,))
    steps: list[tuple[int, int]] = []
    run_bench(Bundle.open(words), settings, on_progress=lambda name, done, total: steps.append((done, total)))
    order = [(job.engine, job.threads) for job in fake_workers]
    first = [("onnx", 1), ("onnx", 3), ("torch", 1), ("torch", 3)]
    assert order == [*first, *reversed(first)]
    assert {(job.threads, job.cores) for job in fake_workers} == {(1, (3,)), (3, (3, 5, 7))}
    assert len({(job.shapes, job.seed, job.warmup, job.seconds) for job in fake_workers}) == 1
    assert steps == [(number, 8) for number in range(8)]


def test_a_worker_that_dies_is_listed_and_not_run_again(
    words: Path, fake_workers: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    result_of = rounds.run_job

    def die(job: Job) -> dict[str, Any]:
        result = result_of(job)
        return {"error": "its process died: signal SIGSEGV"} if job.engine == "torch" else result

    monkeypatch.setattr(rounds, "run_job", die)
    result = run_bench(Bundle.open(words), BenchSettings(threads=(1,), rounds=3))
    assert [job.engine for job in fake_workers].count("torch") == 1
    torch = next(item for item in result["contestants"] if item["engine"] == "torch")
    assert torch["not_measured"] == "its process died: signal SIGSEGV"
    assert {row["engine"] for row in result["rows"]} == {"onnx"}
    assert "speed_over_torch" not in result["rows"][0]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process died: signal SIGKILL"),
        ("raise ValueError('odd')", "its process died: ValueError: odd"),
        ("raise SystemExit(3)", "its process died: exit code 3"),
    ],
)
def test_the_reason_is_reported_however_a_worker_dies(
    program: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {worker_process.sys.executable} -c "{program}"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(worker_process.sys, "executable", str(tmp_path / "python"))
    job = Job("bundle", "onnx", "cpu", 1, (), ((1, 4),), 0.01, 0, 0, None, None)
    assert run_job(job) == {"error": message}


def test_when_onnx_runtime_cannot_run_at_all_it_is_an_error(
    words: Path, fake_workers: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "run_job", lambda job: {"error": "its process died: signal SIGILL"})
    with pytest.raises(InputError, match="ONNX Runtime could not run .*signal SIGILL"):
        run_bench(Bundle.open(words), BenchSettings(threads=(1,)))


def test_a_provider_named_in_the_settings_must_start(
    words: Path, fake_workers: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(providers, "missing_library", lambda name: None)
    result_of = rounds.run_job
    refuse = {"error": "Provider 'cuda' did not start on this machine.", "kind": "ProviderError"}
    monkeypatch.setattr(rounds, "run_job", lambda job: refuse if job.provider == "cuda" else result_of(job))
    with pytest.raises(ProviderError, match="did not start"):
        run_bench(Bundle.open(words), BenchSettings(providers=("cpu", "cuda"), threads=(1,)))
    result = run_bench(Bundle.open(words), BenchSettings(threads=(1, 2)))
    cuda = [item for item in result["contestants"] if item["provider"] == "cuda"]
    assert [(item["engine"], item["threads"]) for item in cuda] == [("onnx", 2), ("torch", 2)]  # a device once
    assert all("did not start" in item["not_measured"] for item in cuda)


def test_ratios_are_taken_round_by_round_to_the_fastest_pytorch() -> None:
    onnx, eager, compiled = (Contestant(engine, "cpu", 2) for engine in ("onnx", "torch", "torch-compile"))
    cuda, other = Contestant("onnx", "cuda", 2), Contestant("onnx", "cpu", 1)
    runs = {
        onnx: [fake_run(2), fake_run(4), fake_run(3)],
        eager: [fake_run(10), fake_run(20), fake_run(15)],
        compiled: [fake_run(8), fake_run(12), fake_run(12, logits=1.5)],
        cuda: [fake_run(1)] * 3,
        other: [fake_run(5, others_share=0.3, logits=1.002)] * 3,
    }
    result = summarize(list(runs), [BatchShape(1, 4)], runs, {})
    rows = {(row["engine"], row["provider"], row["threads"]): row for row in result["rows"]}
    row = rows["onnx", "cpu", 2]
    assert (row["p50_ms"], row["p50_ms_range"], row["samples"]) == (3, [2, 4], 15)
    assert row["compared_with"] == "PyTorch compiled cpu"
    assert (row["speed_over_torch"], row["speed_over_torch_range"]) == (4, [3, 4])
    assert "speed_over_torch" not in rows["onnx", "cuda", 2]  # PyTorch was not on that device
    assert "speed_over_torch" not in rows["onnx", "cpu", 1]  # nor with one thread
    whole = {(item["engine"], item["provider"], item["threads"]): item for item in result["contestants"]}
    assert whole["onnx", "cpu", 1]["others_share"] == 0.3
    assert whole["onnx", "cpu", 1]["relative_error"] == pytest.approx(0.002 / 2)


def test_a_disturbed_measurement_gives_a_warning(
    words: Path, fake_workers: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "run_job", lambda job: fake_run(1, others_share=0.4))
    done = run("bench", words, "--batch", "1", "--length", "4")
    assert "other programs took up to 40% of the cores" in " ".join(done.stdout.split())


def test_systems_that_report_no_memory_and_cannot_pin(
    words: Path, fake_workers: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    silent = fake_run(1, loaded_mb=None, peak_mb=None, others_share=None, pinned=False)
    monkeypatch.setattr(rounds, "run_job", lambda job: silent)
    done = run("bench", words, "--batch", "1", "--length", "4", "--output", tmp_path / "bench.json")
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "bench.json").read_text())["contestants"][0]["peak_mb"] is None


def test_the_machine() -> None:
    assert usable_cores() == tuple(sorted(os.sched_getaffinity(0)))
    assert pin(usable_cores()) is True
    resident, peak = resident_mb(), peak_mb()
    assert resident is not None
    assert peak is not None
    assert 1 < resident <= peak + 1
    share = OthersWatch(usable_cores()).share()
    assert share is None or 0 <= share <= 1
    machine = describe_machine()
    assert machine["processor"]
    assert machine["cores"] == len(usable_cores())


def test_every_engine_gets_the_same_inputs_without_padding(words: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(words)
    one, two = random_inputs(bundle, 3, 8, seed=1), random_inputs(bundle, 3, 8, seed=1)
    assert {name: array.shape for name, array in one.items()} == {"input_ids": (3, 8), "attention_mask": (3, 8)}
    assert all((one[name] == two[name]).all() for name in one)
    assert one["attention_mask"].all()
    pixels = random_inputs(Bundle.open(color_bundle(tmp_path / "colors")), 2, None, seed=0)["pixel_values"]
    assert pixels.shape == (2, 3, 16, 16)
    with pytest.raises(ConfigError, match="at most 32 tokens, not 33: lower --length"):
        random_inputs(bundle, 1, 33, seed=0)
    bundle.manifest.model.inputs.append(TensorEntry(name="bbox", dtype="int64", shape=["batch", 4]))
    with pytest.raises(InputError, match="'bbox', which bench cannot make up"):
        random_inputs(bundle, 1, 4, seed=0)
    unsized = TensorEntry(name="pixel_values", dtype="float", shape=["batch", 3, "height", "width"])
    bundle.manifest.model.inputs = [unsized]
    with pytest.raises(InputError, match="images of any size"):
        random_inputs(bundle, 1, None, seed=0)


def test_only_the_named_engines_and_providers_are_measured() -> None:
    settings = BenchSettings(engines=("torch-compile",), providers=("cpu",))
    assert list_contestants(settings, (1, 2), None) == [Contestant("torch-compile", "cpu", count) for count in (1, 2)]


def test_the_picture_of_an_image_bundle_with_one_batch_shape(
    words: Path, fake_workers: list[Job], tmp_path: Path
) -> None:
    result = run_bench(Bundle.open(words), BenchSettings(batches=(8,), lengths=(4,), threads=(1,)))
    for row in result["rows"]:
        row["tokens"] = None
    result["contestants"][0]["others_share"] = 0.4
    plot_bench(result, tmp_path / "bench.svg")
    drawn = (tmp_path / "bench.svg").read_text()
    assert drawn.lstrip().startswith("<?xml")
    assert "Warning: other programs took up to 40% of the cores" in drawn


def test_mistakes_are_refused_before_anything_is_measured(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "run_job", lambda job: pytest.fail("a worker was started"))
    fails(3, "Bundle not found", "bench", tmp_path / "none")
    absent = "Provider 'coreml' (CoreMLExecutionProvider) is not in the installed ONNX Runtime"
    fails(5, absent, "bench", words, "--provider", "coreml")
    fails(5, absent, "bench", words, "--provider", "cpu,coreml")
    fails(2, "Unknown provider 'gpu'", "bench", words, "--provider", "gpu")
    fails(2, "Unknown engine 'jax': choose from onnx, torch, torch-compile", "bench", words, "--engine", "jax")
    fails(3, "PyTorch cannot be measured: the adapter", "bench", words, "--engine", "onnx,torch")
    for flag in ("--threads", "--batch", "--length"):
        fails(2, f"{flag} needs whole numbers of at least 1", "bench", words, flag, "1,0")
        fails(2, "is not a list of whole numbers", "bench", words, flag, "many")
    fails(2, "--threads 4096 is more than the", "bench", words, "--threads", "4096")
    fails(2, "--rounds must be positive", "bench", words, "--rounds", "0")
    for seconds in ("-1", "inf", "nan"):
        fails(2, "--seconds must be positive and finite", "bench", words, "--seconds", seconds)
    fails(2, "--warmup must be 0 or more", "bench", words, "--warmup", "-1")
    fails(8, "is a directory, but the output is a file", "bench", words, "--output", tmp_path)
    fails(8, "is not a directory; create it first", "bench", words, "--output", tmp_path / "none" / "b.json")
    fails(8, "is not a directory; create it first", "bench", words, "--plot", tmp_path / "none" / "b.png")
    fails(2, "does not name a picture", "bench", words, "--plot", tmp_path / "bench.txt")


def test_a_graph_that_gives_no_numbers_is_called_that(tmp_path: Path) -> None:
    """Its process died of "Out of range float values are not JSON compliant"."""
    words = word_bundle(tmp_path / "words")
    graph = onnx.load(words / MODEL_FILE)
    (votes,) = (item for item in graph.graph.initializer if item.name == "votes")
    votes.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(votes), np.nan), "votes"))
    onnx.save(graph, words / MODEL_FILE)
    job = {"bundle": str(words), "engine": "onnx", "provider": "cpu", "threads": 1, "cores": (), "shapes": [(1, 4)],
           "seconds": 0.0, "warmup": 0, "seed": 0}  # fmt: skip
    with pytest.raises(InputError, match=r"the graph of .*words \(fp32\) gives NaN or infinity"):
        worker._run(job)


def test_texts_longer_than_the_model_reads_are_refused(words: Path) -> None:
    fails(2, "reads at most 32 tokens", "bench", words, "--length", "33", "--threads", "1")


def test_without_a_choice_no_text_is_longer_than_the_model_reads(words: Path) -> None:
    bundle = Bundle.open(words)
    assert longest_text(bundle) == 32
    bundle.manifest.max_length = 24
    assert longest_text(bundle) == 24
    bundle.manifest.max_length = None
    assert longest_text(bundle) is None
    assert BenchSettings().for_texts_up_to(24).lengths == (24,)
    assert BenchSettings().for_texts_up_to(64).lengths == (32, 64)
    assert BenchSettings().for_texts_up_to(None).lengths == (32, 128)
    assert BenchSettings(lengths=(48,)).for_texts_up_to(24).lengths == (48,)
    measured = run(
        "bench",
        words,
        "--rounds",
        "1",
        "--seconds",
        "0.01",
        "--warmup",
        "0",
        "--threads",
        "1",
        "--engine",
        "onnx",
        "--json",
    )
    assert measured.code == 0, measured.stderr
    assert {row["tokens"] for row in json.loads(measured.stdout)["rows"]} == {32}
