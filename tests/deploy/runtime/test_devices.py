"""Every provider that can start here computes what PyTorch does on the CPU: merged, with branches, mixed, and served.

With a CPU build of ONNX Runtime these are tests of the CPU alone; on a machine with a GPU they run on it too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmlora.errors import InputError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime import AdapterSession, providers
from rmlora_deploy.runtime import session as runtime_session
from rmlora_deploy.runtime.adapters.device_bucket import DeviceBucket
from rmlora_deploy.runtime.device_libraries import missing_library
from rmlora_deploy.runtime.providers import Provider, available, create_session
from tests.helpers.branch_graphs import LABELS, Branched, make_adapter, make_adapters, make_base, make_branched
from tests.helpers.bundles import make_bundle
from tests.helpers.cli import run
from tests.helpers.exports import export
from tests.helpers.models import lora_config
from tests.helpers.servers import classify, reference, served_by_command

COPIES = "cpu with copies"
"""The CPU in the place of a device: what a session does for a device is done on the host."""
COMPILES = "compiles"
"""The CPU in the place of a provider that compiles the graph: every LoRA input is fed, in memory of its own."""
STARTABLE = [name for name, built in available().items() if built and missing_library(name) is None]
RANKS = (1, 3, 8, 12)
"""Ranks of the adapters of ``made``; 12 needs a larger bucket than the others."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Branched:
    directory = tmp_path_factory.mktemp("devices")
    (directory / "onnx").mkdir()
    graph = export("bert", directory / "onnx" / "model.onnx", optimized=True)
    configs = {f"a{rank}": lora_config("bert", r=rank) for rank in RANKS}
    return make_branched("bert", graph, directory, make_adapters("bert", directory, configs))


Open = Callable[..., AdapterSession]


@pytest.fixture(params=[*STARTABLE, COPIES, COMPILES])
def opened(request: pytest.FixtureRequest, made: Branched, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open ``made`` on a provider."""
    compiles = Provider(COMPILES, "CPUExecutionProvider", others=())
    monkeypatch.setattr(providers, "PROVIDERS", (*providers.PROVIDERS, compiles))
    if request.param != COPIES:
        return partial(made.session, provider=request.param)

    def opened(**options: Any) -> AdapterSession:
        session = made.session(**options)
        session._zero_copy, session._device = False, "cuda"
        return session

    monkeypatch.setattr(runtime_session, "DeviceBucket", lambda bucket, device: DeviceBucket(bucket, "cpu"))
    return opened


@pytest.mark.parametrize("provider", STARTABLE)
@pytest.mark.parametrize(("name", "precision"), [("bert", "fp32"), ("bert", "fp16"), ("gpt2", "fp32"), ("vit", "fp16")])
def test_a_merged_graph_verifies(name: str, precision: str, provider: str, tmp_path: Path) -> None:
    make_bundle(name, tmp_path, precision=precision)
    for flags in ((), ("--reference-only",)):
        done = run("verify", tmp_path / "bundle", "--provider", provider, *flags)
        assert done.code == 0, done.stderr
    report = Bundle.open(tmp_path / "bundle").manifest.verification
    assert report is not None and report.provider == provider and report.onnx is not None
    assert report.onnx.max_relative_error <= {"fp32": 1e-5, "fp16": 1e-2}[precision]


@pytest.mark.parametrize("provider", STARTABLE)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_with_branches_verifies(precision: str, provider: str, tmp_path: Path) -> None:
    base = make_base("bert", tmp_path)
    flags = [
        part
        for rank, name in enumerate(LABELS, start=2)
        for part in ("-a", f"{name}={make_adapter('bert', tmp_path, name, rank=rank)}")
    ]
    done = run("export", base, "--mode", "branches", *flags, "-o", tmp_path / "many", "--precision", precision)
    assert done.code == 0, done.stderr
    done = run("verify", tmp_path / "many", "--provider", provider)
    assert done.code == 0, done.stderr
    report = Bundle.open(tmp_path / "many").manifest.verification
    assert report is not None and report.provider == provider and report.mixed is not None
    assert report.mixed.max_relative_error <= {"fp32": 1e-5, "fp16": 1e-2}[precision]


def test_rows_of_changing_mixes_get_their_own_adapter_through_every_eviction(made: Branched, opened: Open) -> None:
    session, inputs = opened(max_active_adapters=2), made.inputs(batch=4)
    names = list(made.adapters)
    expected = {name: made.expected(name, batch=4) for name in names}
    expected_base = np.stack(made.session().run(inputs, None))
    rng = np.random.default_rng(0)
    for _ in range(12):
        chosen = [[*names, None][number] for number in rng.integers(0, len(names) + 1, 4)]
        for row, (name, got) in enumerate(zip(chosen, session.run(inputs, chosen), strict=True)):
            want = expected_base[row] if name is None else expected[name][row]
            np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), err_msg=f"{chosen}, row {row}")


def test_an_adapter_registered_again_is_not_answered_by_its_predecessor(made: Branched, opened: Open) -> None:
    session, inputs = opened(), made.inputs(batch=3)
    before = np.stack(session.run(inputs, "a3"))
    session.run(inputs, ["a3", "a8", "a3"])
    session.unload("a3")
    session.register("a3", lambda: made.arrays("a8"))
    for _ in range(2):
        after = np.stack(session.run(inputs, "a3"))
        np.testing.assert_array_equal(after, np.stack(session.run(inputs, "a8")))
    assert np.abs(after - before).max() > 1e-3


def test_a_specialized_graph_and_strengths_agree_with_the_branches(made: Branched, opened: Open) -> None:
    session, inputs = opened(), made.inputs(batch=3)
    with_branches = np.stack(session.run(inputs, "a8"))
    np.testing.assert_allclose(np.stack(session.run(inputs, {"a8": 1.0})), with_branches, rtol=1e-6)
    half = np.stack(session.run(inputs, [{"a8": 0.5}, "a8", None]))
    np.testing.assert_allclose(half[1], with_branches[1], atol=1e-5)
    assert np.abs(half[0] - with_branches[0]).max() > 1e-4
    session.specialize("a8")
    np.testing.assert_allclose(np.stack(session.run(inputs, "a8")), with_branches, atol=1e-5)


def test_threads_that_run_at_the_same_time_do_not_mix_up_their_rows(made: Branched, opened: Open) -> None:
    session = opened(max_active_adapters=2, max_concurrent_runs=3, rows=4)
    inputs, names = made.inputs(batch=4), list(made.adapters)
    expected = {name: made.expected(name, batch=4) for name in names}

    def use(seed: int) -> float:
        chosen = [names[number] for number in np.random.default_rng(seed).integers(0, len(names), 4)]
        got = session.run(inputs, chosen)
        return max(float(np.abs(got[row] - expected[name][row]).max()) for row, name in enumerate(chosen))

    with ThreadPoolExecutor(6) as threads:
        assert max(threads.map(use, range(60))) <= 1e-4


@pytest.mark.parametrize("provider", STARTABLE)
def test_a_served_bundle_answers_on_it(provider: str, served: dict[str, Path]) -> None:
    texts = ["red green", "blue one two three four five six seven", "red"]
    with served_by_command(served["many"], "--provider", provider, "--threads", "1") as running:
        for name in LABELS:
            want = reference(served["many"].parent / name, texts, base=served["many"].parent / "base")
            got = classify(running.url, name, *texts)
            np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("provider", STARTABLE)
def test_a_session_keeps_its_provider_when_a_run_fails(made: Branched, provider: str) -> None:
    session = create_session(made.path, provider)
    inputs = {name: array[:, :0] for name, array in made.inputs().items()}
    with pytest.raises(Exception, match=r"\w"):
        session.run(None, {**inputs, "input_ids": np.full((1, 99), 3, np.int64)})
    assert session.get_providers() == create_session(made.path, provider).get_providers()
    assert not session._enable_fallback


def test_ids_outside_the_vocabulary_are_refused(made: Branched, opened: Open) -> None:
    session, inputs = opened(), made.inputs(batch=2)
    with pytest.raises(InputError):
        session.run({**inputs, "input_ids": np.full_like(inputs["input_ids"], 5000)}, "a8")
