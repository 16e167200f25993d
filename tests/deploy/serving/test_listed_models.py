"""What a server offers it does: every listed model answers, and what is not offered says why."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmlora.nearest_names import nearest_names
from tests.helpers.branch_graphs import make_adapter, make_base
from tests.helpers.cli import run
from tests.helpers.exports import with_bias
from tests.helpers.models import save_base
from tests.helpers.servers import Server, ask, classify, served_by_command, serving


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose base has no head; its adapters ``one`` and ``two`` bring theirs."""
    directory = tmp_path_factory.mktemp("headless")
    base = make_base("bert", directory)
    bare = save_base(with_bias("bert").bert, directory / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, bare / name)
    flags = [part for name in ("one", "two") for part in ("-a", make_adapter("bert", directory, name))]
    done = run("export", bare, "--mode", "branches", *flags, "-o", directory / "bundle", "--no-verify")
    assert done.code == 0, done.stderr
    return directory / "bundle"


@pytest.fixture(scope="module")
def server(headless: Path) -> Iterator[Server]:
    with serving({"bare": headless}, adapter_dirs=(headless.parent,)) as running:
        yield running


def test_a_base_without_a_head_is_not_offered(server: Server) -> None:
    listed = ask(server.url, "/v1/models").body["data"]
    assert [card["id"] for card in listed] == ["one", "two"]
    for card in listed:
        assert classify(server.url, card["id"], "w1 w2")
        assert ask(server.url, f"/v2/models/{card['id']}/ready").status == 200
    asked = {"model": "bare", "input": "w1"}
    for answer in (
        ask(server.url, "/classify", asked),
        ask(server.url, "/v1/models/bare"),
        ask(server.url, "/v2/models/bare/ready"),
        ask(server.url, "/v2/models/bare"),
    ):
        assert answer.status == 404
        assert "The base of 'bare' has no trained head of its own and answers nothing alone" in answer.message
        assert "(one, two)" in answer.message
    assert ask(server.url, "/stats").body["models"] == 2
    refused = ask(server.url, "/v1/load_lora_adapter", {"lora_name": "bare", "lora_path": "one"})
    assert (refused.status, "already" in refused.message) == (400, True)


def test_the_command_serves_a_base_without_a_head(headless: Path) -> None:
    with served_by_command(f"bare={headless}") as running:
        assert classify(running.url, "two", "w1 w2")


def test_a_server_of_merged_bundles_does_not_offer_to_load(served: dict[str, Path], headless: Path) -> None:
    loading = {"lora_name": "new", "lora_path": "one"}
    reason = "its bundles have theirs merged, and only one exported with --mode branches takes others"
    with served_by_command(f"words={served['words']}", "--adapter-dir", headless.parent) as merged:
        assert reason in ask(merged.url, "/stats").body["no_loading"]
        answer = ask(merged.url, "/v1/load_lora_adapter", loading)
        assert (answer.status, reason in answer.message) == (403, True)
        assert not [path for path in ask(merged.url, "/openapi.json").body["paths"] if "lora" in path]
    with serving({"many": served["many"]}) as other:
        assert "without --adapter-dir" in ask(other.url, "/stats").body["no_loading"]
        assert "/v1/load_lora_adapter" in ask(other.url, "/openapi.json").body["paths"]
    with serving({"many": served["many"]}, adapter_dirs=(headless.parent,)) as other:
        assert ask(other.url, "/stats").body["no_loading"] is None


def test_an_unknown_model_is_named_with_the_nearest(server: Server) -> None:
    answer = ask(server.url, "/classify", {"model": "One", "input": "w1"})
    assert (answer.status, "There is no model 'One': the nearest is one; GET" in answer.message) == (404, True)
    answer = ask(server.url, "/v1/models/twoo")
    assert (answer.status, "no model 'twoo': the nearest is two; GET" in answer.message) == (404, True)
    answer = ask(server.url, "/v1/models/xyz")
    assert (answer.status, "no model 'xyz': GET /v1/models lists all" in answer.message) == (404, True)
    answer = ask(server.url, "/classify", {"model": "x" * 50_000, "input": "w1"})
    assert answer.status == 404 and len(answer.text) < 400


def test_the_nearest_of_many_names_are_found_quickly() -> None:
    known = [f"customer-{number:05d}" for number in range(20_000)]
    for typed, meant in (
        ("custmer-07123", "customer-07123"),
        ("Customer-07123", "customer-07123"),
        ("customer_07123", "customer-07123"),
    ):
        assert meant in nearest_names(typed, known), typed
    assert len(nearest_names("customer-0712", known)) == 3
    assert nearest_names("something else", known) == []
    started = time.process_time()
    for typed in ("customer-99999", "x" * 100_000, "customer" * 50):
        nearest_names(typed, known)
    assert time.process_time() - started < 1
