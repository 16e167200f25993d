"""The load test: what it sends and counts, and that it finds wrong answers."""

from __future__ import annotations

import asyncio
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmlora.errors import ConfigError
from rmlora_deploy.loadtest.callers import Load, Outcome, run_load
from rmlora_deploy.loadtest.load_plan import LoadPlan, draw_requests, shares_of
from rmlora_deploy.loadtest.load_report import summarize_load
from tests.helpers.cli import ROOT, environment, fails, run
from tests.helpers.handmade import word_bundle
from tests.helpers.servers import Server, classify, serving

SHORT = ("--seconds", "0.6", "--warmup", "0.1", "--clients", "3")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("loadtest")
    bundles = {name: word_bundle(directory / name) for name in ("first", "second", "third")}
    with serving(bundles) as running:
        yield running


@pytest.fixture(scope="module")
def reference(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["w0 w1", "w2 w2", "w1"]
    answers = {name: classify(server.url, name, *texts) for name in ("first", "second", "third")}
    path = tmp_path_factory.mktemp("reference") / "reference.json"
    path.write_text(json.dumps({"texts": texts, "answers": answers, "tolerance": 1e-6}))
    return path


def load(server: Server, *flags: str | Path) -> dict[str, Any]:
    done = run("loadtest", server.url, *SHORT, "--json", *flags)
    assert done.code == 0, done.stderr
    return json.loads(done.stdout)


def test_a_closed_loop_counts_what_was_answered(server: Server, reference: Path, tmp_path: Path) -> None:
    plot, output = tmp_path / "latency.png", tmp_path / "figures.json"
    result = load(server, "--reference", reference, "--plot", plot, "-o", output, "--rows", "2")
    assert (result["loop"], result["clients"], result["models"], result["checked"], result["wrong"]) == (
        "closed",
        3,
        3,
        True,
        0,
    )
    assert result["requests"] == result["answered"] > 0 and result["errors"] == {}
    assert result["rows_per_second"] == pytest.approx(2 * result["requests_per_second"], abs=0.02)
    points = [result["latency_ms"][point] for point in ("p50", "p90", "p95", "p99", "p99.9", "max")]
    assert points == sorted(points) and points[0] > 0
    assert json.loads(output.read_text()) == result
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_open_loop_sends_at_its_rate(server: Server) -> None:
    result = load(server, "--rate", "40", "--zipf", "0", "--model", "first", "--model", "third")
    assert (result["loop"], result["rate"], result["clients"], result["models"]) == ("open", 40.0, None, 2)
    assert 5 <= result["requests"] <= 60  # 24 are expected
    assert not result["checked"] and result["wrong"] is None


def test_a_table_for_people(server: Server, tmp_path: Path) -> None:
    done = run("loadtest", server.url, *SHORT, "--plot", tmp_path / "a.svg")
    assert done.code == 0, done.stderr
    assert "not checked" in done.stdout and "3 clients" in done.stdout and "Written: " in done.stdout


def test_popularity_follows_zipf() -> None:
    np.testing.assert_allclose(shares_of(4, 1.0) * (1 + 1 / 2 + 1 / 3 + 1 / 4), [1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(shares_of(5, 0.0), 0.2)
    plan = LoadPlan(url="", models=("a", "b", "c"), texts=("x", "y"), zipf=1.0, rows=3)
    drawn = list(islice(draw_requests(plan), 6000))
    counts = Counter(model for model, _ in drawn)
    for rank, model in enumerate("abc"):
        assert counts[model] / 6000 == pytest.approx(shares_of(3, 1.0)[rank], abs=0.03)
    assert all(len(texts) == 3 and set(texts) <= {0, 1} for _, texts in drawn)
    assert drawn == list(islice(draw_requests(plan), 6000))
    assert drawn != list(islice(draw_requests(plan, 1), 6000))


def test_wrong_answers_are_found(server: Server, reference: Path, tmp_path: Path) -> None:
    changed = json.loads(reference.read_text())
    changed["answers"]["first"][0][0] += 1e-3
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(changed))
    done = run("loadtest", server.url, *SHORT, "--model", "first", "--reference", path, "--json")
    assert done.code == 6 and "answers differ from the reference" in done.stderr
    result = json.loads(done.stdout)
    assert 0 < result["wrong"] < result["requests"]  # one text of three


def test_a_model_that_the_server_lacks_is_named_before_anything_is_sent(server: Server) -> None:
    message = "The server has no model 'frist': the nearest is first."
    fails(3, message, "loadtest", server.url, *SHORT, "--model", "second", "--model", "frist")
    message = "The server has no model 'nope': it has first, second, third."
    fails(3, message, "loadtest", server.url, *SHORT, "--model", "nope")


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers whatever the test tells it to."""

    replies: dict[str, list[tuple[int, Any]]]

    lists: tuple[int, Any] = (200, {"data": [{"id": "m"}]})
    """The answer to ``GET /v1/models``."""

    def do_GET(self) -> None:
        self._answer(*getattr(self.server, "lists", self.lists) if self.path == "/v1/models" else (200, {}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        replies = self.server.replies  # type: ignore[attr-defined]
        self._answer(*(replies.pop(0) if len(replies) > 1 else replies[0]))

    def _answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


ONE = {"texts": ["x"], "answers": {"m": [[0.5, 0.5]]}, "tolerance": 1e-3}


@pytest.mark.parametrize(
    "body",
    [
        {}, [], None, {"model": "m", "data": [{}]}, {"model": "m", "data": 5}, {"model": "m", "data": []},
        {"model": "m", "data": [{"probs": [0.5]}]}, {"model": "m", "data": [{"probs": ["a", "b"]}]},
        {"model": "m", "data": [{"probs": [float("nan"), 0.5]}]}, {"model": "other", "data": [{"probs": [0.5, 0.5]}]},
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_wrong(odd: http.server.ThreadingHTTPServer, tmp_path: Path, body: Any) -> None:
    odd.replies = [(200, body)]  # type: ignore[attr-defined]
    (tmp_path / "one.json").write_text(json.dumps(ONE))
    url = f"http://127.0.0.1:{odd.server_address[1]}"
    flags = ("--seconds", "0.2", "--warmup", "0", "--clients", "1", "--reference", tmp_path / "one.json")
    fails(6, "answers differ from the reference", "loadtest", url, *flags)


@pytest.mark.parametrize("listed", [(404, {}), (200, {"object": "list"}), (200, []), (200, {"data": []})])
def test_errors_are_counted_by_status_and_a_server_need_not_list_its_models(
    odd: http.server.ThreadingHTTPServer, listed: tuple[int, Any]
) -> None:
    odd.lists = listed  # type: ignore[attr-defined]
    odd.replies = [(200, {"model": "any", "data": [{"probs": [0.5, 0.5]}]}), (404, {})]  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{odd.server_address[1]}"
    flags = ("--seconds", "0.6", "--warmup", "0", "--clients", "1", "--json")
    done = run("loadtest", url, "--model", "any", *flags)
    result = json.loads(done.stdout)
    assert list(result["errors"]) == ["404"]
    assert result["answered"] == 1 and result["answered"] + result["errors"]["404"] == result["requests"]
    assert done.code == 3
    assert (
        f"{result['errors']['404']} of {result['requests']} requests failed ({result['errors']['404']} × 404)"
        in done.stderr
    )


def test_what_was_refused_is_sent_again(odd: http.server.ThreadingHTTPServer) -> None:
    right = (200, {"model": "m", "data": [{"probs": [0.5, 0.5]}]})
    odd.replies = [(429, {}), (503, {}), right]  # type: ignore[attr-defined]
    plan = LoadPlan(
        url=f"http://127.0.0.1:{odd.server_address[1]}", models=("m",), texts=("x",), seconds=0.8, warmup=0.0,
        clients=1, retries=2,
    )  # fmt: skip
    seen: list[tuple[int, float]] = []
    loaded = asyncio.run(run_load(plan, "key", progress=lambda requests, seconds: seen.append((requests, seconds))))
    assert {outcome.status for outcome in loaded.outcomes} == {200}
    assert [outcome.retries for outcome in loaded.outcomes][:2] == [2, 0]
    assert summarize_load(plan, loaded)["retried"] == 1
    assert seen


def test_percentiles_are_of_what_was_answered() -> None:
    plan = LoadPlan(url="", models=("m",), texts=("x",), rows=2)
    outcomes = [Outcome(0.0, number / 1000, 200, "m") for number in range(1, 101)] + [Outcome(0.0, 9.0, 0, "m")]
    result = summarize_load(plan, Load(outcomes, seconds=10.0))
    assert (result["latency_ms"]["p50"], result["latency_ms"]["max"], result["latency_ms"]["mean"]) == (
        50.5,
        100.0,
        50.5,
    )
    assert (result["requests_per_second"], result["rows_per_second"], result["errors"]) == (
        10.0,
        20.0,
        {"no answer": 1},
    )
    assert summarize_load(plan, Load([], seconds=10.0))["latency_ms"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--clients", "0"), "--clients and --rows must be at least 1"),
        (("--rows", "0"), "--clients and --rows must be at least 1"),
        (("--retries", "-1"), "--retries must not be negative"),
        (("--seconds", "-1"), "--seconds, --timeout and --rate must be more than 0"),
        (("--seconds", "nan"), "--seconds, --timeout and --rate must be more than 0"),
        (("--seconds", "inf"), "all must be finite"),
        (("--rate", "0"), "--seconds, --timeout and --rate must be more than 0"),
        (("--rate", "inf"), "all must be finite"),
        (("--timeout", "0"), "--seconds, --timeout and --rate must be more than 0"),
        (("--warmup", "-1"), "--warmup must not be negative"),
        (("--zipf", "nan"), "--zipf must not be negative"),
        (("--seed", "-1"), "--seed must not be negative"),
        (("--plot", "latency.txt"), ".png"),
    ],
)
def test_settings_that_cannot_work(flags: tuple[str, ...], message: str) -> None:
    fails(2, message, "loadtest", "http://127.0.0.1:1", "--model", "m", *flags)


def test_files_that_cannot_be_used(server: Server, reference: Path, tmp_path: Path) -> None:
    for content in ("[]", "{}", '{"texts": ["a"], "answers": {"m": [["b"]]}, "tolerance": 1}', "nothing"):
        (tmp_path / "bad.json").write_text(content)
        fails(3, "bad.json", "loadtest", server.url, "--reference", tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"texts": ["a"], "answers": {"m": []}, "tolerance": 1}')
    fails(3, "answers are not as many as the texts", "loadtest", server.url, "--reference", tmp_path / "bad.json")
    fails(2, "no answers for 'nobody'", "loadtest", server.url, "--reference", reference, "--model", "nobody")
    (tmp_path / "texts.txt").write_text("\n \n")
    fails(3, "has no texts", "loadtest", server.url, "--texts", tmp_path / "texts.txt")
    fails(3, "nothing.txt does not exist", "loadtest", server.url, "--texts", tmp_path / "nothing.txt")
    (tmp_path / "texts.txt").write_bytes(b"caf\xe9\n")
    fails(3, "texts.txt cannot be read as UTF-8", "loadtest", server.url, "--texts", tmp_path / "texts.txt")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        fails(3, "is the server running?", "loadtest", url)
        fails(3, "is the server running?", "loadtest", url, "--model", "m")


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("127.0.0.1:8123", "http://127.0.0.1:8123"),
        ("localhost:8123", "http://localhost:8123"),
        ("server", "http://server"),
        ("no address at all", "http://127.0.0.1:8000"),
        ("ftp://server", "http://127.0.0.1:8000"),
        ("http://server:99999", "http://127.0.0.1:8000"),
        ("http://[::1", "http://127.0.0.1:8000"),
        ("", "http://127.0.0.1:8000"),
    ],
)
def test_what_is_not_an_address_is_called_that(given: str, advice: str) -> None:
    for flags in ((), ("--model", "m")):
        fails(3, f"Error: '{given}' is not an address: write {advice}.", "loadtest", given, *flags)


def test_a_key_is_sent(tmp_path: Path) -> None:
    with serving({"words": word_bundle(tmp_path / "words")}, api_key="secret") as running:
        fails(3, "answers 401: check --api-key", "loadtest", running.url, *SHORT)
        assert load(running, "--api-key", "secret")["errors"] == {}


def test_so_short_that_nothing_is_answered_says_so(server: Server) -> None:
    fails(3, "increase --seconds", "loadtest", server.url, "--seconds", "0.000001", "--warmup", "0")


def test_ctrl_c_ends_it_with_a_word(server: Server) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rmlora_deploy", "loadtest", server.url, "--seconds", "300", "--warmup", "0"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )  # fmt: skip
    assert server.registry is not None
    begun = threading.Event()
    for runner in server.registry.runners.values():
        runner.queue._observe = lambda *_: begun.set()
    try:
        assert begun.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted." in said and "Traceback" not in said


def test_a_plan_needs_something_to_ask() -> None:
    with pytest.raises(ConfigError, match="at least one model and one text"):
        LoadPlan(url="", models=(), texts=("x",))
