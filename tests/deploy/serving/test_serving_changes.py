"""Loading and unloading during requests: no answer is another adapter's, and a refused adapter changes nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmlora.errors import ConfigError
from tests.helpers.branch_graphs import make_adapter
from tests.helpers.servers import ADAPTERS, Answer, Server, ask, classify, held_back, reference, serving, until

TEXTS = ["w1 w5 w3", "w2 w2 w8 w4 w9 w1 w3 w7 w6 w5"]
PACKAGES = {"p1": ("one", 1), "p2": ("two", 8), "p3": ("three", 3), "p4": ("one", 12), "p5": ("two", 2)}
"""Adapter package → its labels and its rank."""
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def packages(served: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of adapter packages with different ranks and numbers of labels, some of them broken."""
    directory = tmp_path_factory.mktemp("packages")
    for name, (labels, rank) in PACKAGES.items():
        make_adapter("bert", directory, labels, rank=rank).rename(directory / name)
    for name in ("nan", "cut", "no-config", "other-base", "other-shape", "other-task"):
        shutil.copytree(directory / "p2", directory / name)
    tensors = load_file(directory / "nan" / "adapter_model.safetensors")
    for broken, change in (
        ("nan", lambda a: a * np.float32("nan")),
        ("other-shape", lambda a: np.concatenate([a, a], -1)),
    ):
        changed = {
            key: np.ascontiguousarray(change(array)) if "lora_A" in key else array for key, array in tensors.items()
        }
        save_file(changed, directory / broken / "adapter_model.safetensors")
        forget_digest(directory / broken)
    whole = (directory / "cut" / "adapter_model.safetensors").read_bytes()
    (directory / "cut" / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    (directory / "no-config" / "adapter_config.json").unlink()
    change_metadata(directory / "other-task", task="image-classification")
    module = next(key for key in tensors if "lora_A" in key).removeprefix("base_model.model.").partition(".lora_A")[0]
    change_metadata(directory / "other-base", base_weights={module: "0" * 32})
    (directory / "way-out").symlink_to(served["many"].parent / "one")
    for name, elsewhere in (("link-inside", served["many"].parent / "one"), ("link-beside", directory / "p1")):
        shutil.copytree(directory / "p2", directory / name)
        (directory / name / "adapter_model.safetensors").unlink()
        (directory / name / "adapter_model.safetensors").symlink_to(elsewhere / "adapter_model.safetensors")
    (directory / "file").write_text("no directory")
    return directory


def forget_digest(package: Path) -> None:
    metadata = json.loads((package / "rmlora.json").read_text())
    metadata = {key: value for key, value in metadata.items() if "sha256" not in key}
    (package / "rmlora.json").write_text(json.dumps(metadata))


def change_metadata(package: Path, **changes: object) -> None:
    metadata = json.loads((package / "rmlora.json").read_text())
    (package / "rmlora.json").write_text(json.dumps({**metadata, **changes}))


@pytest.fixture(scope="module")
def expected(served: dict[str, Path], packages: Path) -> dict[str, list[list[float]]]:
    home = served["many"].parent
    places = {**{name: home / name for name in ADAPTERS}, **{name: packages / name for name in PACKAGES}}
    return {name: reference(path, TEXTS, base=home / "base") for name, path in places.items()}


@pytest.fixture(scope="module")
def server(served: dict[str, Path], packages: Path) -> Iterator[Server]:
    with serving({"many": served["many"]}, adapter_dirs=(packages,), max_active_adapters=2) as running:
        before = state(running)
        yield running
        assert state(running) == before


@pytest.fixture
def own(served: dict[str, Path], packages: Path) -> Iterator[Server]:
    """A server that a test may leave in another state."""
    with serving({"many": served["many"]}, adapter_dirs=(packages,), max_active_adapters=2) as running:
        yield running


def load(server: Server, name: str, path: str) -> Answer:
    return ask(server.url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})


def unload(server: Server, name: str) -> Answer:
    return ask(server.url, "/v1/unload_lora_adapter", {"lora_name": name})


def state(server: Server) -> tuple[list[str], list[str], list[str]]:
    """Return the served models, the adapters registered with the session, and the files that the server wrote."""
    assert server.registry is not None
    session = server.registry.runners["many"].session
    assert session is not None
    files = sorted(path.name for path in server.registry._scratch.path.iterdir())
    return [model.id for model in server.registry.models], [str(key) for key in session.cache.names], files


def close(got: list[list[float]], right: list[list[float]]) -> bool:
    return all(
        len(a) == len(b) and np.abs(np.subtract(a, b)).max() < TOLERANCE for a, b in zip(got, right, strict=True)
    )


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("nan", 400, "NaN"),
        ("cut", 400, "cut"),
        ("no-config", 400, "adapter_config.json"),
        ("other-shape", 400, "other-shape"),
        ("other-task", 400, "task"),
        ("other-base", 400, "another base"),
        ("file", 403, "no adapter at that path"),
        ("", 403, "no adapter at that path"),
        (".", 403, "no adapter at that path"),
        ("..", 403, "no adapter at that path"),
        ("../..", 403, "no adapter at that path"),
        ("p1/../../..", 403, "no adapter at that path"),
        ("/etc", 403, "no adapter at that path"),
        ("way-out", 403, "no adapter at that path"),
        ("link-inside", 403, "no adapter at that path"),
        ("link-beside", 400, "is a link that leads out of its directory"),
        ("p1\0", 403, "no adapter at that path"),
        ("\ud800", 403, "no adapter at that path"),
        ("~root", 403, "no adapter at that path"),
        ("a" * 5000, 403, "no adapter at that path"),
        ("nowhere", 403, "no adapter at that path"),
    ],
)
def test_what_cannot_be_loaded_changes_nothing(
    server: Server, packages: Path, path: str, status: int, message: str
) -> None:
    before = state(server)
    answer = load(server, "new", path)
    assert (answer.status, message in answer.message) == (status, True), answer.text
    assert str(packages) not in answer.text
    assert "Traceback" not in answer.text
    assert state(server) == before
    assert load(server, "new", "p1").status == 200  # the name is still free
    assert unload(server, "new").status == 200


@pytest.mark.parametrize(
    "name", ["", "-a", "a b", "a/b", "../a", "a@1", "a\n", "a\0", "\ud800", "ä", "a" * 101, "many", "one"]
)
def test_names_that_cannot_be_given(server: Server, name: str) -> None:
    before = state(server)
    answer = load(server, name, "p1")
    assert answer.status == 400
    assert "name" in answer.message or "already" in answer.message
    assert len(answer.text) < 500
    assert state(server) == before


def test_loading_and_unloading_are_off_without_a_directory(served: dict[str, Path]) -> None:
    with serving({"many": served["many"]}) as running:
        before = state(running)
        for answer in (load(running, "new", "p1"), unload(running, "one")):
            assert (answer.status, "started without --adapter-dir" in answer.message) == (403, True)
        assert state(running) == before


def test_a_merged_bundle_takes_no_adapters(served: dict[str, Path], packages: Path) -> None:
    with serving({"words": served["words"]}, adapter_dirs=(packages,)) as running:
        answer = load(running, "new", "p1")
        assert (answer.status, "its bundles have theirs merged" in answer.message) == (403, True)


def test_what_is_unloaded_leaves_nothing(server: Server) -> None:
    before = state(server)
    for _ in range(3):
        for name in PACKAGES:
            assert load(server, name, name).status == 200
        for name in PACKAGES:
            classify(server.url, name, *TEXTS)
            assert unload(server, name).status == 200
            assert unload(server, name).status == 404
    assert state(server) == before


def test_only_one_of_many_gets_a_name(server: Server, expected: dict[str, list[list[float]]]) -> None:
    assert server.registry is not None
    for _ in range(5):
        with ThreadPoolExecutor(4) as callers:
            answers = dict(zip(PACKAGES, callers.map(lambda path: load(server, "wanted", path), PACKAGES), strict=True))
        (winner,) = [path for path, answer in answers.items() if answer.status == 200]
        others = [answer for answer in answers.values() if answer.status != 200]
        assert {(answer.status, "taken" in answer.message or "already" in answer.message) for answer in others} == {
            (400, True)
        }, others
        assert close(classify(server.url, "wanted", *TEXTS), expected[winner])
        assert len(state(server)[2]) == 1
        with ThreadPoolExecutor(4) as callers:
            gone = list(callers.map(lambda _: unload(server, "wanted").status, range(4)))
        assert sorted(gone) == [200, 404, 404, 404]
    assert state(server)[2] == []


def test_a_bundles_own_adapter_can_go_and_its_name_can_come_back(
    own: Server, expected: dict[str, list[list[float]]]
) -> None:
    assert close(classify(own.url, "two", *TEXTS), expected["two"])
    assert unload(own, "two").status == 200
    assert load(own, "two", "p3").status == 200
    assert close(classify(own.url, "two", *TEXTS), expected["p3"])


@pytest.mark.parametrize("workers", [1, 2])
def test_load_unload_and_eviction_under_load_never_mix_adapters(
    served: dict[str, Path], packages: Path, expected: dict[str, list[list[float]]], workers: int
) -> None:
    """Eight adapters share a cache of two, five of them are loaded and unloaded, and one name goes to each of those in turn."""
    stop, wrong, answered = threading.Event(), list[str](), dict[str, int]()
    turns = 12
    with serving(
        {"many": served["many"]}, adapter_dirs=(packages,), max_active_adapters=2, workers=workers, max_batch=8
    ) as running:

        def client(seed: int) -> None:
            rng = np.random.default_rng(seed)
            names = [*ADAPTERS, *PACKAGES, "shared"]
            while not stop.is_set():
                name, text = str(rng.choice(names)), int(rng.integers(len(TEXTS)))
                answer = ask(running.url, "/classify", {"model": name, "input": TEXTS[text]})
                if answer.status == 404 and name not in ADAPTERS:
                    continue
                if answer.status != 200:
                    wrong.append(f"{name}: {answer.status} {answer.text}")
                    continue
                possible = PACKAGES if name == "shared" else [name]
                got = answer.body["data"][0]["probs"]
                if not any(close([got], [expected[item][text]]) for item in possible):
                    wrong.append(f"{name}: {got}")
                answered[name] = answered.get(name, 0) + 1

        def change(path: str) -> None:
            for _ in range(turns):
                assert load(running, path, path).status == 200
                assert close(classify(running.url, path, *TEXTS), expected[path])
                assert unload(running, path).status == 200

        def share() -> None:
            for turn in range(turns):
                path = list(PACKAGES)[turn % len(PACKAGES)]
                assert load(running, "shared", path).status == 200
                assert close(classify(running.url, "shared", *TEXTS), expected[path])  # and not the one before
                assert unload(running, "shared").status == 200

        with ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(client, seed) for seed in range(6)]
            changes = [pool.submit(change, path) for path in PACKAGES] + [pool.submit(share)]
            try:
                for future in changes:
                    future.result(120)
            finally:
                stop.set()
            for future in clients:
                future.result(120)
        assert not wrong, wrong[:5]
        assert all(answered[name] > 0 for name in ADAPTERS)
        assert running.registry is not None
        cache = running.registry.runners["many"].cache
        assert cache is not None and cache.evictions > 0
        assert state(running)[2] == []
        assert running.registry.waiting == 0


def test_rows_that_wait_when_their_adapter_goes_are_404(own: Server, expected: dict[str, list[list[float]]]) -> None:
    assert own.registry is not None
    assert load(own, "gone", "p1").status == 200
    with ThreadPoolExecutor(3) as callers:
        with held_back(own, "many") as begun:
            first = callers.submit(classify, own.url, "one", TEXTS[0])
            assert begun.acquire(timeout=30)
            waits = callers.submit(ask, own.url, "/classify", {"model": "gone", "input": TEXTS[0]})
            neighbor = callers.submit(classify, own.url, "two", TEXTS[0])
            until(lambda: own.registry.waiting == 2)
            assert unload(own, "gone").status == 200
            assert load(own, "gone", "p3").status == 200
        assert close(first.result(), expected["one"][:1])
        assert close(neighbor.result(), expected["two"][:1])
        answer = waits.result()
    assert (answer.status, "was unloaded before" in answer.message) == (404, True), answer.text


def test_two_bundles_cannot_share_a_name(served: dict[str, Path]) -> None:
    with pytest.raises(
        ConfigError, match="Both 'many' and 'one' have a model 'one', and clients could not tell them apart"
    ):
        with serving({"many": served["many"], "one": served["words"]}):
            pass
