"""The server on Ray Serve: two replicas answer like one server while adapters and replicas come and go."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.cli import WORDS
from tests.helpers.servers import make_served, served_by_command, serving

TEXTS = [" ".join(WORDS[start : start + 3]) for start in range(6)]
KEY = "a key for tests"


@dataclass
class Cluster:
    """Two replicas that serve ``bundles``, and the answers of a single server."""

    url: str
    bundles: dict[str, Path]
    packages: Path
    shared: Path
    environment: dict[str, str]
    pid: int
    expected: dict[str, list[list[float]]] = field(default_factory=dict)
    """Model → probabilities for each of :data:`TEXTS`."""
    models: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)

    def ask(self, path: str, body: Any = None, *, key: str | None = KEY) -> tuple[int, Any]:
        return ask(self.url + path, body, key=key)

    def probabilities(self, model: str) -> tuple[int, list[list[float]]]:
        status, answer = self.ask("/classify", {"model": model, "input": TEXTS})
        return status, [item["probs"] for item in answer["data"]] if status == 200 else []

    def replicas(self) -> list[int]:
        """Return the process ids of the replicas."""
        name = "ray::ServeReplica:rmlora:Replica"  # with what it does after a dot, while it does something
        return [pid for pid in descendants(self.pid) if title(pid).partition(".")[0] == name]


def ask(url: str, body: Any = None, *, key: str | None = None) -> tuple[int, Any]:
    """Return the status and the answer, parsed if it is JSON."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as reply:  # noqa: S310
            status, content = reply.status, reply.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode()


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0").split(b"\0")[0].decode()
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("ray")
    bundles = make_served(directory)
    shared = directory / "shared"
    shared.mkdir()
    environment = {"RAY_TMPDIR": str(tmp_path_factory.getbasetemp()), "RMLORA_API_KEY": KEY}
    words = [f"{name}={path}" for name, path in bundles.items()]
    options = (
        "--ray",
        "--max-active-adapters",
        "1",
        "--adapter-dir",
        directory,
        "--shared-dir",
        shared,
        "--max-wait-ms",
        "1",
    )
    with served_by_command(*words, *options, **environment) as server:
        assert server.process is not None
        made = Cluster(server.url, bundles, directory, shared, environment, server.process.pid)
        with serving(bundles) as single:
            _, listed = ask(f"{single.url}/v1/models")
            made.models = listed["data"]
            for model in ("many", "one", "two", "three", "words"):
                _, answer = ask(f"{single.url}/classify", {"model": model, "input": TEXTS})
                made.expected[model] = [item["probs"] for item in answer["data"]]
            _, made.tensors = ask(f"{single.url}/v2/models/many/infer", tensors())
        yield made


def tensors() -> dict[str, Any]:
    ids = [[3, 4, 5], [6, 7, 8]]
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [2, 3], "data": data}
        for name, data in (("input_ids", ids), ("attention_mask", [[1, 1, 1]] * 2))
    ]
    return {"inputs": inputs, "parameters": {"adapters": ["two", "many"]}}


def close(given: list[list[float]], expected: list[list[float]]) -> bool:
    return len(given) == len(expected) and all(
        row == pytest.approx(other, abs=1e-5) for row, other in zip(given, expected, strict=True)
    )


@dataclass
class Load:
    """The answers to continuous requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    after: Counter[int] = field(default_factory=Counter)
    """Statuses of requests sent after :meth:`mark`."""
    marked: bool = False
    refusals: list[Any] = field(default_factory=list)
    """Status and body of every answer that was no 200."""

    def mark(self) -> None:
        self.marked = True


@contextmanager
def load(cluster: Cluster, *models: str) -> Iterator[Load]:
    """Ask ``models`` from eight threads while the block runs, and check every answer."""
    done, stop = Load(), threading.Event()

    def work(number: int) -> None:
        for model in itertools.cycle(models[number % len(models) :] + models[: number % len(models)]):
            if stop.is_set():
                return
            marked = done.marked
            status, answer = cluster.ask("/classify", {"model": model, "input": TEXTS})
            answers = [item["probs"] for item in answer["data"]] if status == 200 else []
            done.refusals += [(status, answer)] if status != 200 else []
            done.statuses[status] += 1
            done.after[status] += marked
            done.wrong += status == 200 and not close(answers, cluster.expected[model])
            stop.wait(0.1)  # the machine is to have time left for starting processes

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def until(condition: Any, seconds: float = 300) -> Any:
    """Wait for something that takes seconds on an idle machine; the limit is long, so that a busy machine fails no test."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.2)
    return value


def rows_by_replica(cluster: Cluster, model: str) -> dict[str, float]:
    _, text = cluster.ask("/metrics")
    return {
        item.labels["replica"]: item.value
        for family in text_string_to_metric_families(text)
        for item in family.samples
        if item.name == "rmlora_rows_total" and item.labels["model"] == model
    }


def test_answers_and_errors_are_those_of_one_server(cluster: Cluster) -> None:
    status, listed = cluster.ask("/v1/models")
    assert status == 200
    strip = [{key: value for key, value in card.items() if key != "created"} for card in listed["data"]]
    assert strip == [{key: value for key, value in card.items() if key != "created"} for card in cluster.models]
    for model, expected in cluster.expected.items():
        status, answers = cluster.probabilities(model)
        assert status == 200 and close(answers, expected)
    status, answer = cluster.ask("/v2/models/many/infer", tensors())
    assert status == 200
    assert answer["outputs"][0]["data"] == pytest.approx(cluster.tensors["outputs"][0]["data"], abs=1e-5)
    for path in ("/healthz", "/readyz", "/v2/health/ready", "/"):
        assert cluster.ask(path, key=None)[0] == 200
    assert cluster.ask("/classify", {"model": "one", "input": "w1"}, key=None)[0] == 401
    assert cluster.ask("/classify", {"model": "nobody", "input": "w1"})[0] == 404
    assert cluster.ask("/classify", {"input": "w1"})[0] == 400
    assert cluster.ask("/v1/unload_lora_adapter", {"lora_name": "many"})[0] == 400
    assert "/classify" in cluster.ask("/openapi.json")[1]["paths"]


def test_requests_for_an_adapter_go_where_it_is_in_memory(cluster: Cluster) -> None:
    def told(name: str, count: int) -> dict[str, float]:
        found: dict[str, float] = until(
            lambda: (rows := rows_by_replica(cluster, name)) and sum(rows.values()) >= count and rows
        )
        assert sum(found.values()) == count
        return found

    def all_go_where_the_first_went() -> bool:
        """Try it with a new name: routers learn with a delay which replica has what, and on a busy machine too late."""
        name = f"alone-{next(numbers)}"
        assert cluster.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": "three"})[0] == 200
        asked = {"model": name, "input": TEXTS[0]}
        assert cluster.ask("/classify", asked)[0] == 200
        told(name, 1)
        for _ in range(39):
            assert cluster.ask("/classify", asked)[0] == 200
        rows = told(name, 40)
        stats = until(lambda: (found := cluster.ask("/stats")[1]).get("replicas") == 2 and found)
        assert stats["rows"][name] == 40
        assert cluster.ask("/v1/unload_lora_adapter", {"lora_name": name})[0] == 200
        return len(rows) == 1

    numbers = itertools.count()
    until(all_go_where_the_first_went)


def test_what_is_loaded_and_unloaded_counts_everywhere_at_once(cluster: Cluster) -> None:
    def everywhere(path: str, body: Any = None) -> list[tuple[int, Any]]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda _: cluster.ask(path, body), range(24)))

    asked = {"model": "fresh", "input": TEXTS}
    assert cluster.ask("/classify", asked)[0] == 404
    for package in ("two", "three"):  # the name again, for another adapter
        status, said = cluster.ask("/v1/load_lora_adapter", {"lora_name": "fresh", "lora_path": package})
        assert status == 200, said
        for status, answer in everywhere("/classify", asked):
            assert status == 200
            assert close([item["probs"] for item in answer["data"]], cluster.expected[package])
        assert {status for status, _ in everywhere("/v1/models/fresh")} == {200}
        assert cluster.ask("/v1/load_lora_adapter", {"lora_name": "fresh", "lora_path": "one"})[0] == 400
        assert cluster.ask("/v1/unload_lora_adapter", {"lora_name": "fresh"})[0] == 200
        assert {status for status, _ in everywhere("/classify", asked)} == {404}
    assert cluster.ask("/v1/load_lora_adapter", {"lora_name": "fresh", "lora_path": "../two"})[0] == 403
    assert not list(cluster.shared.glob("*.onnx_adapter"))


def test_loading_unloading_and_evicting_under_load_mixes_nothing(cluster: Cluster) -> None:
    seen = Counter[int]()
    with load(cluster, "one", "two", "three", "many") as done:
        end = time.monotonic() + 8
        while time.monotonic() < end:
            for package in ("one", "two", "three"):
                assert cluster.ask("/v1/load_lora_adapter", {"lora_name": "coming", "lora_path": package})[0] == 200
                for _ in range(3):
                    status, answers = cluster.probabilities("coming")
                    seen[status] += 1
                    assert close(answers, cluster.expected[package])
                assert cluster.ask("/v1/unload_lora_adapter", {"lora_name": "coming"})[0] == 200
    assert not done.refusals and done.statuses[200] > 50 and not done.wrong
    assert set(seen) == {200} and seen[200] >= 6
    _, text = cluster.ask("/metrics")
    evicted = [
        line for line in text.splitlines() if line.startswith("rmlora_adapter_cache_total") and "evictions" in line
    ]
    assert evicted and sum(float(line.split()[-1]) for line in evicted) > 10


@pytest.mark.rare
def test_a_killed_replica_costs_no_right_answer(cluster: Cluster) -> None:
    pids = cluster.replicas()
    assert len(pids) == 2
    with load(cluster, "one", "two", "three") as done:
        time.sleep(1)
        os.kill(pids[0], signal.SIGKILL)
        done.mark()
        until(lambda: len(cluster.replicas()) == 2 and pids[0] not in cluster.replicas())
        until(lambda: cluster.ask("/stats")[1].get("replicas") == 2)
        until(lambda: done.after.total() > 20)
    assert set(done.statuses) <= {200, 503} and not done.wrong
    assert done.after[200] > 0.95 * done.after.total()


@pytest.mark.rare
def test_a_new_release_takes_over_under_load_and_drops_nothing(cluster: Cluster) -> None:
    """``serve --ray --ray-address`` replaces the running release; the new one lacks the bundle ``words``."""
    assert cluster.ask("/v1/load_lora_adapter", {"lora_name": "kept", "lora_path": "two"})[0] == 200
    old = set(cluster.replicas())
    options = ("--ray", "--ray-address", "auto", "--max-active-adapters", "2", "--shared-dir", cluster.shared)
    with ExitStack() as stack, load(cluster, "one", "two", "three", "many") as done:  # the load ends before the command
        stack.enter_context(served_by_command(f"many={cluster.bundles['many']}", *options, **cluster.environment))
        until(lambda: not old & set(cluster.replicas()))
        assert cluster.ask("/v1/models/words")[0] == 404
        assert close(cluster.probabilities("kept")[1], cluster.expected["two"])
    assert not done.refusals and not done.wrong
    assert done.statuses[200] > 100
