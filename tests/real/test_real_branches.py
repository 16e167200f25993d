"""MiniLM and DINOv2-small with branches on every projection: the base to the bit, PEFT's answers, any mixture of rows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.assets import dinov2_small, minilm
from benchmarks.random_adapters import save_random_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.reference import load_reference
from tests.helpers.cli import run
from tests.helpers.rarely import rarely

pytestmark = pytest.mark.e2e

RANKS = {"small": (4, 2), "middle": (8, 6), "large": (16, 3)}
"""Adapter → rank and labels."""


@pytest.fixture(scope="module", params=["text-classification", rarely("image-classification")])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("real")
    task = request.param
    base = minilm() if task == "text-classification" else dinov2_small(directory / "dinov2")
    flags: list[Any] = []
    for name, (rank, count) in RANKS.items():
        labels = [f"{name}-{number}" for number in range(count)]
        flags += ["-a", save_random_adapter(base, task, directory / name, rank=rank, labels=labels, seed=rank)]
    done = run("export", base, "--mode", "branches", *flags, "-o", directory / "bundle", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["mode"] == "branches"
    return Bundle.open(directory / "bundle")


def test_the_report_holds_what_was_promised(bundle: Bundle) -> None:
    report = bundle.manifest.verification.to_dict()
    modules = 36 if bundle.task.name == "text-classification" else 73
    assert len(bundle.lora_inputs().modules) == modules
    assert report["base"]["bit_equal"]
    for row in [report["mixed"], *(item["onnx"] for item in report["adapters"].values())]:
        assert row["max_relative_error"] <= 1e-5


def test_rows_of_a_mixed_batch_are_their_own_single_runs(bundle: Bundle) -> None:
    session = bundle.adapter_session()
    cases, _ = load_reference(bundle.path / "reference.safetensors")
    names = [*RANKS] * 3
    chosen = names[: len(next(iter(cases[-1].values())))]
    for row, (name, got) in enumerate(zip(chosen, session.run(cases[-1], chosen), strict=True)):
        alone = session.run(cases[-1], name)[row]
        assert got.shape == alone.shape == (RANKS[name][1],)
        assert np.abs(got - alone).max() <= 1e-5 * np.abs(alone).max()


def test_onnxruntimes_own_adapter_gives_the_same_numbers(bundle: Bundle) -> None:
    session, ours = bundle.session(), bundle.adapter_session()
    cases, _ = load_reference(bundle.path / "reference.safetensors")
    names = {item.name for item in session.get_inputs()}
    for name in RANKS:
        adapter, options = ort.LoraAdapter(), ort.RunOptions()
        adapter.Load(str(bundle.path / bundle.adapter(name).file))
        options.add_active_adapter(adapter)
        (got,) = session.run(None, {key: value for key, value in cases[1].items() if key in names}, options)
        np.testing.assert_array_equal(got, np.stack(ours.run(cases[1], name)))
