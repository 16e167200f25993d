"""SIGHUP: the server takes over what the command line changed, and refuses no request for it."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.serving.reload import reload_bundle
from tests.helpers.branch_graphs import LABELS, make_adapter
from tests.helpers.cli import run
from tests.helpers.servers import Server, ask, classify, held_back, reference, served_by_command, serving, until

TEXTS = ["w1 w5 w3", "w2 w2 w8 w4"]


@pytest.fixture
def bundle(served: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(served["many"], tmp_path / "many"))


@pytest.fixture
def change(bundle: Path, tmp_path: Path) -> Callable[[], dict[str, Path]]:
    """Exchange ``three`` for an adapter with other labels, remove ``two``, add ``four``; return the new ones' packages."""
    packages = {}
    for name, labels, rank in (("three", "one", 8), ("four", "two", 3)):
        (tmp_path / "new" / name).mkdir(parents=True)
        packages[name] = make_adapter("bert", tmp_path / "new" / name, labels, rank=rank)

    def made() -> dict[str, Path]:
        for words in (
            ("remove", "three"),
            ("remove", "two"),
            *(("add", f"{name}={path}") for name, path in packages.items()),
        ):
            done = run("adapter", words[0], bundle, words[1])
            assert done.code == 0, done.stderr
        return packages

    return made


def labels(server: Server) -> dict[str, list[str]]:
    return {card["id"]: card["labels"] for card in ask(server.url, "/v1/models").body["data"]}


def test_a_signal_takes_over_the_changes_under_load_and_refuses_nothing(
    served: dict[str, Path], bundle: Path, change: Callable[[], dict[str, Path]]
) -> None:
    statuses, stop = Counter[int](), threading.Event()

    def load(url: str, model: str) -> None:
        while not stop.is_set():
            statuses[ask(url, "/classify", {"model": model, "input": TEXTS}).status] += 1

    with served_by_command(f"many={bundle}") as server, ExitStack() as ending:
        assert server.process is not None
        threads = [threading.Thread(target=load, args=(server.url, model)) for model in ("one", "three", "many", "one")]
        for thread in threads:
            thread.start()
            ending.callback(thread.join)
        ending.callback(stop.set)
        before = classify(server.url, "three", *TEXTS)
        packages = change()
        assert classify(server.url, "three", *TEXTS) == before, "the change counts from the signal on"
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "four" in labels(server))
        assert labels(server)["three"] == LABELS["one"] and "two" not in labels(server)
        base = served["many"].parent / "base"
        for name, package in packages.items():
            np.testing.assert_allclose(
                classify(server.url, name, *TEXTS), reference(package, TEXTS, base=base), atol=1e-5
            )
        assert ask(server.url, "/classify", {"model": "two", "input": "w1"}).status == 404
        for _ in range(20):  # one after another, and together
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
        until(lambda: sum(statuses.values()) > 200)
        assert server.process.poll() is None
    assert set(statuses) == {200}


def test_rows_that_wait_are_answered_by_the_adapter_they_were_sent_for(
    bundle: Path, change: Callable[[], dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"many": bundle}) as server:
        assert server.registry is not None
        before = classify(server.url, "three", *TEXTS)
        answers: list[list[list[float]]] = []
        with held_back(server, "many") as begun:
            waits = threading.Thread(target=lambda: answers.append(classify(server.url, "three", *TEXTS)))
            waits.start()
            assert begun.acquire(timeout=30)
            change()
            said = reload_bundle(server.registry, server.registry.runners["many"])
            assert said == "added four; removed two; exchanged three"
        waits.join(30)
        np.testing.assert_allclose(answers[0], before, atol=1e-6)
        assert len(classify(server.url, "three", *TEXTS)[0]) == len(LABELS["one"])
        assert reload_bundle(server.registry, server.registry.runners["many"]) == "nothing has changed"


def test_a_bundle_that_cannot_be_taken_over_is_served_as_before(
    served: dict[str, Path], bundle: Path, change: Callable[[], dict[str, Path]]
) -> None:
    packages = served["many"].parent
    with serving({"many": bundle}, adapter_dirs=(packages,)) as server:
        assert server.registry is not None
        runner = server.registry.runners["many"]
        assert ask(server.url, "/v1/load_lora_adapter", {"lora_name": "four", "lora_path": "one"}).status == 200
        before = labels(server)
        assert classify(server.url, "three", *TEXTS)
        change()
        with pytest.raises(ConfigError, match="There is a model 'four' already"):
            reload_bundle(server.registry, runner)
        assert labels(server) == before and classify(server.url, "three", *TEXTS)
        assert ask(server.url, "/v1/unload_lora_adapter", {"lora_name": "four"}).status == 200
        manifest = (bundle / "manifest.json").read_text()
        (bundle / "manifest.json").write_text(json.dumps({**json.loads(manifest), "max_length": 7}))
        with pytest.raises(ConfigError, match="'max_length' of .* has changed, and only adapters can be exchanged"):
            reload_bundle(server.registry, runner)
        (bundle / "manifest.json").write_text(json.dumps({**json.loads(manifest), "function_to_apply": "sigmoid"}))
        with pytest.raises(ConfigError, match="'function_to_apply' of .* has changed, and only adapters"):
            reload_bundle(server.registry, runner)
        (bundle / "manifest.json").write_text(manifest)
        file = bundle / "adapters" / "four.onnx_adapter"
        right = file.read_bytes()
        file.write_bytes(right[:100])
        with pytest.raises(InputError, match="differs from the manifest"):
            reload_bundle(server.registry, runner)
        file.write_bytes(right)
        assert ask(server.url, "/v1/unload_lora_adapter", {"lora_name": "one"}).status == 200
        assert reload_bundle(server.registry, runner) == "added four; removed two; exchanged three"
        assert set(labels(server)) == {"many", "three", "four"}, "'one' was unloaded and has not changed"


def test_scores_that_mean_something_else_are_a_change(bundle: Path) -> None:
    with serving({"many": bundle}) as server:
        assert server.registry is not None
        before = classify(server.url, "three", *TEXTS)
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["adapters"]["three"]["function_to_apply"] = "sigmoid"
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        assert reload_bundle(server.registry, server.registry.runners["many"]) == "exchanged three"
        cards = {card["id"]: card["function_to_apply"] for card in ask(server.url, "/v1/models").body["data"]}
        assert cards["three"] == "sigmoid" and cards["one"] == "softmax"
        scores = np.array(classify(server.url, "three", *TEXTS))
        odds = np.log(before) - np.log(scores / (1 - scores))  # the logits but for a constant, minus the logits
        np.testing.assert_allclose(odds, odds[:, :1] * np.ones_like(odds), atol=1e-4)


def test_what_was_removed_is_forgotten_in_the_end(bundle: Path, change: Callable[[], dict[str, Path]]) -> None:
    with serving({"many": bundle}, timeout=0.2, body_timeout=0.1) as server:
        assert server.registry is not None
        runner = server.registry.runners["many"]
        assert runner.session is not None
        cache = runner.session.cache
        change()
        reload_bundle(server.registry, runner)
        until(lambda: sorted(map(str, cache.names)) == ["four", "one", "three"])
