"""The parts of scaling out that need no Ray: state, leases, routing by adapter, aggregated figures and settings."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from prometheus_client.parser import text_string_to_metric_families

from rmlora.errors import ConfigError, InputError
from rmlora_deploy.bundles.manifest import read_manifest
from rmlora_deploy.bundles.meaning import content_digest
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterKey
from rmlora_deploy.serving.errors import UnavailableError, UnreachableError
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.middleware.stack import wrap
from rmlora_deploy.serving.pair_scores import chosen_model
from rmlora_deploy.serving.registry import Registry
from rmlora_deploy.serving.scaling.adapter_state import AdapterState, LoadedAdapter, adapter_file
from rmlora_deploy.serving.scaling.application import REPLICA, Application, Scale
from rmlora_deploy.serving.scaling.asgi import Call, Reply, answer_call
from rmlora_deploy.serving.scaling.coordinator import Coordinator
from rmlora_deploy.serving.scaling.ingress import Forward, named_adapter
from rmlora_deploy.serving.scaling.metrics_aggregation import merge_metrics, merge_stats
from rmlora_deploy.serving.scaling.replica_registry import ReplicaRegistry, graph_digest
from rmlora_deploy.serving.serve_settings import ServeSettings
from rmlora_deploy.serving.service import Service
from tests.helpers.cli import fails, run_process
from tests.helpers.handmade import word_bundle

FINE = Reply(200, [], b"{}")
STOPPING = Reply(503, [(b"retry-after", b"1")], b"{}")
UNAVAILABLE = Reply(503, [], b"{}")
KEY = AdapterKey("spam", 1)
OTHER_KEY = AdapterKey("spam", 2)
ENTRY = LoadedAdapter(KEY, "both", "digest", ("no", "yes"), 32, 8, 100, 0)


def test_the_state_keeps_names_generations_and_versions(tmp_path: Path) -> None:
    state = AdapterState().load(ENTRY).remove("old", "sha")
    with pytest.raises(ConfigError, match="a model 'spam' already"):
        state.load(replace(ENTRY, key=OTHER_KEY))
    assert state.load(replace(ENTRY, key=OTHER_KEY, graph_digest="other")).loaded["spam"].key == OTHER_KEY
    assert state.unload(AdapterKey("spam", 0)) is state
    assert state.unload(KEY).loaded == {}
    state.write(tmp_path / "state.json")
    assert AdapterState.read(tmp_path / "state.json") == state
    assert state.version == 2
    for damaged in ("{}", "[]", '{"version": 1, "removed": {}, "loaded": [{"key": 5, "labels": []}]}'):
        (tmp_path / "state.json").write_text(damaged)
        with pytest.raises(InputError, match="does not list loaded adapters"):
            AdapterState.read(tmp_path / "state.json")


async def keep_watching(coordinator: Coordinator, replica: str, version: int) -> None:
    while True:
        assert await coordinator.watch(replica, version, "told") is None


def test_a_change_waits_for_every_replica_and_for_the_silent_until_their_lease_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        coordinator = Coordinator(str(tmp_path), lease=0.6)
        assert (await coordinator.watch("a", -1, None)) == AdapterState()
        assert await coordinator.watch("silent", -1, None) is not None
        loading = asyncio.create_task(coordinator.load(ENTRY))
        state = await coordinator.watch("a", 0, None)
        assert state is not None and state.version == 1
        watching = asyncio.create_task(keep_watching(coordinator, "a", 1))
        await asyncio.sleep(0.2)
        assert not loading.done()  # the silent one may still answer by the old state
        assert await loading is None
        assert await coordinator.reports() == {"a": "told"}
        watching.cancel()
        assert await coordinator.load(ENTRY) is not None  # taken
        again = Coordinator(str(tmp_path), lease=0.3)
        unloading = asyncio.create_task(again.unload(KEY))
        await asyncio.sleep(0.1)
        assert not unloading.done()  # replicas it has never heard of may rely on the coordinator before it
        assert await unloading is None
        assert AdapterState.read(tmp_path / "adapters.json").loaded == {}

    asyncio.run(scene())


def test_a_replica_with_another_content_of_the_same_directory_does_not_join(tmp_path: Path) -> None:
    async def scene() -> None:
        coordinator = Coordinator(str(tmp_path), lease=0.3)
        assert await coordinator.join({"/models/both": "old"}) is None
        await coordinator.watch("a", -1, {"contents": {"/models/both": "old"}})
        await coordinator.watch("older release", -1, {"metrics": b""})
        assert await coordinator.join({"/models/both": "old", "/models/new": "x"}) is None
        refusal = await coordinator.join({"/models/both": "new"})
        assert refusal is not None and "/models/both has changed since other replicas opened it" in refusal
        await asyncio.sleep(0.4)  # there is no other replica any more
        assert await coordinator.join({"/models/both": "new"}) is None

    asyncio.run(scene())


def test_a_bundles_content_is_what_decides_its_answers(served: dict[str, Path]) -> None:
    manifest = read_manifest(served["many"] / "manifest.json")
    digest = content_digest(manifest)
    assert (
        content_digest(manifest.model_copy(update={"verification": None, "seconds": 1.0, "created_by": "x"})) == digest
    )
    one = manifest.adapters["one"]
    for changed in (
        manifest.model_copy(update={"max_length": 7}),
        manifest.model_copy(update={"adapters": {}}),
        manifest.model_copy(
            update={"adapters": {**manifest.adapters, "one": one.model_copy(update={"labels": ["a", "b"]})}}
        ),
        manifest.model_copy(
            update={"adapters": {**manifest.adapters, "one": one.model_copy(update={"input_form": "pair"})}}
        ),
        manifest.model_copy(update={"adapter": one}),
    ):
        assert content_digest(changed) != digest


def test_a_shared_file_that_changed_is_unavailable_in_every_replica(served: dict[str, Path], tmp_path: Path) -> None:
    changes = OneReplica()
    settings = ServeSettings(threads=1, adapter_dirs=(served["many"].parent,))
    registries = [ReplicaRegistry(settings, None, directory=tmp_path, changes=changes) for _ in range(2)]
    for registry in registries:
        registry.open(served["many"], name="many")
        registry.trust_until(float("inf"))
    first, second = registries
    changes.registry = first  # type: ignore[assignment]
    first.load("fresh", "two")
    changes.state.write(tmp_path / "state.json")
    second.apply(AdapterState.read(tmp_path / "state.json"))
    entry = changes.state.loaded["fresh"]
    shutil.copyfile(served["many"] / "adapters" / "three.onnx_adapter", tmp_path / adapter_file(entry.key))
    for registry in registries:
        model = registry.model("fresh")
        (row,) = model.runner.rows(["w1"], model)
        with pytest.raises(UnavailableError, match="'fresh' is not available"):
            model.runner.submit([row]).result(30)
        assert not registry.available(model)
    older = replace(entry, sha256="")  # as an earlier release recorded it: what is there now counts
    third = ReplicaRegistry(settings, None, directory=tmp_path, changes=changes)
    third.open(served["many"], name="many")
    third.trust_until(float("inf"))
    third.apply(AdapterState(1, {"fresh": older}))
    model = third.model("fresh")
    assert len(model.runner.submit(model.runner.rows(["w1"], model)).result(30)) == 1
    for registry in (*registries, third):
        registry.close(5)


@pytest.mark.parametrize(("name", "value"), [(b"host", b"evil.example"), (b"origin", b"http://evil.example")])
def test_the_ingress_refuses_foreign_pages_as_a_server_does(tmp_path: Path, name: bytes, value: bytes) -> None:
    settings, sent = ServeSettings(), list[Any]()
    forward = Forward(SimpleNamespace(answer=None), Application({}, str(tmp_path), settings), timeout=1)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [*({b"host": b"localhost", b"content-type": b"application/json"} | {name: value}).items()]
    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": headers}
    asyncio.run(wrap(forward, settings, Metrics())(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 403 and b"--allowed-host" in sent[1]["body"]


class Replicas:
    """Stands for Ray Serve's handle: gives the replies in order, the last one again and again."""

    def __init__(self, *replies: Reply) -> None:
        self._replies, self.asked = list(replies), list[str | None]()
        self.answer = self

    def options(self, multiplexed_model_id: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda call: self._reply(multiplexed_model_id))

    def remote(self, call: Call) -> Any:
        return self._reply(None)

    async def _reply(self, name: str | None) -> Reply:
        self.asked.append(name)
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


@pytest.mark.parametrize(
    ("path", "replies", "status", "asked"),
    [
        ("/classify", [STOPPING] * 4 + [FINE], 200, ["spam", None, None, None, None]),
        ("/classify", [STOPPING], 503, ["spam", *[None] * 5]),
        ("/classify", [UNAVAILABLE, FINE], 200, ["spam", None]),
        ("/classify", [UNAVAILABLE], 503, ["spam", None]),
        ("/v1/load_lora_adapter", [STOPPING, FINE], 503, [None]),
    ],
)
def test_a_request_leaves_replicas_that_stop(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    replies: list[Reply],
    status: int,
    asked: list[str | None],
) -> None:
    monkeypatch.setattr("rmlora_deploy.serving.scaling.ingress._PAUSE", 0.001)
    replicas = Replicas(*replies)
    forward = Forward(replicas, Application({}, str(tmp_path), ServeSettings()), timeout=30)
    reply = asyncio.run(forward._ask(Call("POST", path, b"", [], b'{"model": "spam"}')))
    assert (reply.status, replicas.asked) == (status, asked)


class OneReplica:
    """A coordinator with one replica, which takes over every change at once."""

    def __init__(self) -> None:
        self.state, self.registry = AdapterState(), None

    def load(self, entry: LoadedAdapter) -> None:
        self._take(self.state.load(entry))

    def unload(self, key: AdapterKey) -> None:
        self._take(self.state.unload(key))

    def remove(self, name: str, digest: str) -> None:
        self._take(self.state.remove(name, digest))

    def _take(self, state: AdapterState) -> None:
        self.state = state
        self.registry.apply(state)  # type: ignore[attr-defined]


def test_no_model_is_chosen_by_a_state_that_may_be_old(tmp_path: Path) -> None:
    """A request that named no model was answered by a replica without contact to the coordinator."""
    registry = ReplicaRegistry(ServeSettings(threads=1), None, directory=tmp_path, changes=OneReplica())
    registry.open(word_bundle(tmp_path / "words"), name="words")
    service: Any = SimpleNamespace(registry=registry)
    for name in (None, "words"):
        with pytest.raises(UnreachableError, match="lost contact"):
            chosen_model(service, name)
    registry.trust_until(float("inf"))
    assert chosen_model(service, None) is chosen_model(service, "words")
    registry.close(5)


def test_a_registry_serves_what_the_state_says(served: dict[str, Path], tmp_path: Path) -> None:
    changes = OneReplica()
    settings = ServeSettings(threads=1, adapter_dirs=(served["many"].parent,))
    registry = ReplicaRegistry(settings, None, directory=tmp_path, changes=changes)
    changes.registry = registry  # type: ignore[assignment]
    runner = registry.open(served["many"], name="many")
    with pytest.raises(Exception, match="lost contact"):
        registry.model("one")
    registry.trust_until(float("inf"))
    registry.load("fresh", "two")
    assert registry.model("fresh").labels == registry.model("two").labels
    assert [file.name for file in tmp_path.iterdir()] == [adapter_file(changes.state.loaded["fresh"].key)]
    with pytest.raises(ConfigError, match="already"):
        registry.load("fresh", "one")
    registry.unload("one")
    assert {model.id for model in registry.models} == {"many", "two", "three", "fresh"}
    registry.unload("fresh")
    assert not list(tmp_path.iterdir())
    digest = graph_digest(runner)
    foreign = replace(ENTRY, bundle="many")
    known = replace(ENTRY, key=AdapterKey("two", 1), bundle="many", graph_digest=digest)
    registry.apply(
        AdapterState(9, {"spam": foreign, "two": known})
    )  # of another graph, and of a name that the bundle has
    assert {model.id for model in registry.models} == {"many", "two", "three"}
    assert registry.state.version == 9
    registry.close(5)


@pytest.mark.parametrize(
    ("method", "path", "body", "adapter"),
    [
        ("POST", "/classify", {"model": "spam", "input": "x"}, "spam"),
        ("POST", "/v1/embeddings", {"model": "spam", "input": "x"}, "spam"),
        ("POST", "/v2/rerank", {"model": "spam", "query": "x", "documents": ["y"]}, "spam"),
        ("POST", "/predict", {"inputs": ["x", "y"]}, None),
        ("POST", "/v2/models/spam/infer", {}, "spam"),
        ("POST", "/v2/models/sp%61m/versions/1/infer", {}, "spam"),
        ("POST", "/classify", {"model": "both"}, None),
        ("POST", "/classify", {"model": 3}, None),
        ("POST", "/classify", {"model": "x" * 1000}, None),
        ("POST", "/classify", [], None),
        ("POST", "/classify", None, None),
        ("POST", "/classify", {"input": '"model": "none"' + "x" * 100_000, "model": "spam"}, "spam"),  # not parsed
        ("POST", "/classify", {"input": "x" * 100_000}, None),
        ("GET", "/v1/models/spam", None, None),
        ("POST", "/v1/load_lora_adapter", {"lora_name": "spam"}, None),
    ],
)
def test_which_adapter_a_request_is_for(method: str, path: str, body: Any, adapter: str | None) -> None:
    content = b"{" if body is None else json.dumps(body).encode()
    assert named_adapter(Call(method, path, b"", [], content), {"both": "/models/both"}) == adapter


def test_a_request_is_answered_from_another_process_as_it_would_be_here() -> None:
    app = FastAPI()

    @app.post("/echo/{name}")
    async def echo(name: str, request: Request) -> dict[str, Any]:
        body = (await request.body()).decode()
        return {"name": name, "query": dict(request.query_params), "body": body, "agent": request.headers["user-agent"]}

    call = Call("POST", "/echo/é", b"a=1", [(b"user-agent", b"test")], b"hello")
    reply = asyncio.run(answer_call(app, call))
    assert reply.status == 200 and (b"content-type", b"application/json") in reply.headers
    assert json.loads(reply.body) == {"name": "é", "query": {"a": "1"}, "body": "hello", "agent": "test"}
    assert asyncio.run(answer_call(app, Call("GET", "/nowhere", b"", [], b""))).status == 404


@pytest.mark.parametrize(("part", "status"), [(b"x" * 2000, 413), (None, 408)])
def test_the_ingress_refuses_bodies_as_a_server_does(tmp_path: Path, part: bytes | None, status: int) -> None:
    settings = ServeSettings(max_body=1000, body_timeout=0.05)
    replicas = SimpleNamespace(answer=None)  # which are not asked
    forward = Forward(replicas, Application({}, str(tmp_path), settings), timeout=1)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if part is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": part, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": headers}
    asyncio.run(wrap(forward, settings, Metrics())(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == status and (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == status


def test_figures_of_all_replicas_are_aggregated() -> None:
    made = []
    for requests in (2, 3):
        metrics = Metrics()
        metrics.watch(registry := Registry(ServeSettings()))
        for _ in range(requests):
            metrics.request("/classify", 200, requests / 100, asked=True)
        made.append((metrics.text().decode(), Service(registry, metrics).stats()))
        registry.close(1)
    text = merge_metrics({"a": made[0][0], "b": made[1][0]}).decode()
    values = {
        item.labels["replica"]: item.value
        for family in text_string_to_metric_families(text)
        for item in family.samples
        if item.name == "rmlora_requests_total"
    }
    assert values == {"a": 2.0, "b": 3.0} and text.count("# TYPE rmlora_requests_total") == 1
    stats = merge_stats(json.loads(json.dumps([stats for _, stats in made])))
    assert stats["requests"] == 5 and stats["replicas"] == 2 and stats["latency_ms"]["p50"] == 30.0
    assert set(made[0][1]) | {"replicas"} == set(stats)
    assert set(stats["series"]) == set(made[0][1]["series"])


def test_args_are_plain_say_all_and_hold_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServeSettings(threads=2, max_active_adapters=8, adapter_dirs=(tmp_path,))
    application = Application({"both": "/models/both"}, "/shared", settings, key_required=True)
    args = application.to_args()
    assert json.loads(json.dumps(args)) == args
    assert Application.from_args(args) == application
    monkeypatch.delenv("RMLORA_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="RMLORA_API_KEY is not set"):
        application.with_key()
    monkeypatch.setenv("RMLORA_API_KEY", "secret")
    assert application.with_key().api_key == "secret"
    for wrong in ({**args, "replicas": 3}, {**args, "settings": {"api_key": "x"}}, {"bundles": {}, "shared_dir": "/x"}):
        with pytest.raises(ConfigError):
            Application.from_args(wrong)
    fixed, moving = Scale(replicas=3).options(settings), Scale(min_replicas=1, max_replicas=5).options(settings)
    assert fixed[REPLICA]["num_replicas"] == 3 and "autoscaling_config" not in fixed[REPLICA]
    assert moving[REPLICA]["autoscaling_config"]["max_replicas"] == 5 and "num_replicas" not in moving[REPLICA]
    assert Scale().options(replace(settings, provider="cuda"))[REPLICA]["ray_actor_options"]["num_gpus"] == 1


def test_options_that_do_not_go_together_are_refused(served: dict[str, Path], tmp_path: Path) -> None:
    many = served["many"]
    fails(2, "--replicas needs --ray", "serve", many, "--replicas", "2")
    fails(2, "--write-config needs --ray", "serve", many, "--write-config", tmp_path / "x.yaml")
    fails(2, "--replicas must be at least 1", "serve", many, "--ray", "--replicas", "0")
    fails(2, "--replicas is a fixed number", "serve", many, "--ray", "--replicas", "2", "--max-replicas", "3")
    fails(2, "--min-replicas needs --max-replicas", "serve", many, "--ray", "--min-replicas", "2")
    fails(2, "is more than --max-replicas", "serve", many, "--ray", "--min-replicas", "3", "--max-replicas", "2")
    fails(2, "--shared-dir is required", "serve", many, "--ray", "--ray-address", "auto")
    fails(2, "is not a directory", "serve", many, "--ray", "--shared-dir", tmp_path / "absent")
    fails(3, "Bundle not found", "serve", tmp_path / "absent", "--ray")


def test_without_ray_the_extra_is_named(served: dict[str, Path]) -> None:
    done = run_process("serve", served["many"], "--ray", without=("ray",))
    assert done.code == 4
    assert "(extra 'ray')" in done.stderr and "pip install 'ray[serve]" in done.stderr
