"""The command as a process: its output, how it stops, and its log."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmlora.errors import ConfigError
from rmlora_deploy.serving.address import listen
from rmlora_deploy.serving.json_log import JsonLines
from tests.helpers.cli import BLOCKER, environment, fails, run
from tests.helpers.handmade import word_bundle
from tests.helpers.servers import Answer, ask, serving

SLOW = (
    BLOCKER.format(blocked=("torch", "peft"))
    + """
import time
from rmlora_deploy.serving.model_runner import ModelRunner
run = ModelRunner._run_merged
def slow(self, rows):
    print("begun", flush=True)
    time.sleep(SECONDS)
    return run(self, rows)
ModelRunner._run_merged = slow
from rmlora_deploy.cli import main
main()
"""
)
"""The command line without torch, as it is deployed, and with a slow model."""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_bundle(tmp_path_factory.mktemp("shutdown") / "words")


class Command:
    """``rmlora-deploy serve`` in a separate process."""

    def __init__(self, *flags: str | Path, seconds: float = 0.0, **more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW.replace("SECONDS", str(seconds)), "serve", *map(str, flags), "--port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more),
        )  # fmt: skip
        self.lines: list[str] = []
        self.begun = threading.Semaphore(0)
        """Released whenever the model starts a batch."""
        self._found = threading.Event()
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_begun)]
        for reader in self._readers:
            reader.start()
        assert self._found.wait(60), self.lines
        assert self.url, self.lines

    url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if found := re.search(r"http://[\d.:]+", line):
                self.url = found.group()
                self._found.set()
        self._found.set()

    def _read_begun(self) -> None:
        assert self.process.stdout is not None
        for _ in self.process.stdout:
            self.begun.release()

    def end(self, timeout: float = 60) -> int:
        """Wait until the process ends and return its exit code."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        assert not any("Traceback" in line for line in self.lines), self.lines
        return code


@contextmanager
def command(*flags: str | Path, seconds: float = 0.0, **more: str) -> Iterator[Command]:
    running = Command(*flags, seconds=seconds, **more)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(30)


def ask_words(url: str, number: int, **headers: str) -> tuple[int, str]:
    answer = ask(url, "/classify", {"model": "words", "input": f"w{number % 3}"}, **headers)
    return answer.status, answer.body["data"][0]["label"] if answer.status == 200 else answer.message


def waiting(url: str, **headers: str) -> int:
    return int(ask(url, "/stats", **headers).body["waiting"])


def test_sigterm_lets_it_answer_what_it_accepted_and_its_log_tells_nothing_of_it(words: Path, tmp_path: Path) -> None:
    secret, private = "the-key-itself", "private-words"
    key = {"authorization": f"Bearer {secret}"}
    with command(words, "--max-batch", "1", seconds=0.15, RMLORA_API_KEY=secret, TMPDIR=str(tmp_path)) as running:
        assert any(name.startswith("rmlora-serve-") for name in os.listdir(tmp_path))
        sent = [
            ask(running.url, "/classify", {"model": "words", "input": private}, **key),
            ask(running.url, "/classify", {"model": private, "input": private}, **key),
            ask(running.url, "/classify", private.encode(), **key),
            ask(running.url, "/classify", {"model": "words", private: 1, "input": {private: 1}}, **key),
            ask(running.url, f"/v2/models/{private}/infer?{private}", {"inputs": []}, **key),
            ask(running.url, f"/{private}", authorization=f"Bearer {private}"),
        ]
        assert [answer.status for answer in sent] == [200, 404, 400, 400, 400, 401]
        with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), 30) as connection:
            connection.sendall(f"{private} is no HTTP\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        assert running.begun.acquire(timeout=60)
        stopped_under_load(running, signal.SIGTERM, **key)
        assert running.end() == 0
    assert not any(name.startswith("rmlora-") for name in os.listdir(tmp_path))
    everything = "\n".join(running.lines)
    assert secret not in everything and private not in everything
    lines = [json.loads(line) for line in running.lines]
    assert all(line["time"] and ("id" in line or "message" in line) for line in lines)
    logged = {line["id"]: line for line in lines if "id" in line}
    for answer in sent:
        assert logged[answer.headers["x-request-id"]]["status"] == answer.status
    fine = logged[sent[0].headers["x-request-id"]]
    assert (fine["route"], fine["model"], fine["rows"], fine["tokens"]) == ("/classify", "words", 1, 3)
    assert fine["method"] == "POST" and fine["ms"] >= 150


def test_ctrl_c_stops_it_likewise(words: Path) -> None:
    with command(words, "--max-batch", "1", seconds=0.15) as running:
        stopped_under_load(running, signal.SIGINT)
        assert running.end() == 0


def stopped_under_load(running: Command, number: signal.Signals, **headers: str) -> None:
    """Send a signal while eight requests wait or are computed; all of them are answered, and later ones are not."""
    with ThreadPoolExecutor(8) as callers:
        accepted = [callers.submit(ask_words, running.url, caller, **headers) for caller in range(8)]
        begun = 0
        while begun + waiting(running.url, **headers) < 8:  # a connection that nobody has taken is not accepted
            time.sleep(0.01)
            begun += running.begun.acquire(blocking=False)
        running.process.send_signal(number)
        answers = [future.result(60) for future in accepted]
    assert answers == [(200, ("red", "green", "blue")[caller % 3]) for caller in range(8)]
    with pytest.raises(ConnectionRefusedError):
        ask(running.url, "/healthz")


@contextmanager
def one_request_in_the_model(running: Command) -> Iterator[Future[Answer]]:
    with ThreadPoolExecutor(1) as callers:
        future = callers.submit(ask, running.url, "/classify", {"model": "words", "input": "w1"})
        assert running.begun.acquire(timeout=60)
        yield future


def test_what_takes_longer_than_the_drain_time_is_cut_off(words: Path) -> None:
    with command(words, "--drain", "1", seconds=300.0) as running, one_request_in_the_model(running) as late:
        running.process.send_signal(signal.SIGTERM)
        answer = late.result(60)
        assert (answer.status, "stopped before it answered this request" in answer.message) == (503, True)
        assert running.end() == 0  # long before the model would be ready


def test_a_second_ctrl_c_ends_it_at_once(words: Path) -> None:
    with command(words, "--drain", "300", seconds=300.0) as running, one_request_in_the_model(running) as late:
        running.process.send_signal(signal.SIGINT)
        while not refuses(running.url):  # it has taken notice
            time.sleep(0.01)
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 130
        assert late.result(60).status == 503
        assert running.lines[-1] == "Error: Interrupted."


def refuses(url: str) -> bool:
    try:
        ask(url, "/healthz")
    except OSError:
        return True
    return False


def test_a_failure_is_logged_once_with_its_place_and_without_its_words(words: Path) -> None:
    log, lines = logging.getLogger("rmlora.serve"), io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with serving({"words": words}) as running:
            assert running.registry is not None

            def broken(rows: object) -> None:
                raise KeyError("private-words")

            running.registry.runners["words"].queue._run = broken  # type: ignore[assignment]
            answer = ask(running.url, "/classify", {"model": "words", "input": "private-words"})
    finally:
        log.removeHandler(handler)
    assert (answer.status, answer.body["error"]["type"]) == (500, "server_error")
    assert "its log gives the reason under the request id" in answer.message
    assert "private" not in lines.getvalue() + answer.text
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert all(answer.headers["x-request-id"] in (line.get("id") or line["message"]) for line in logged)
    assert [line["error"] for line in logged if "error" in line] == ["KeyError"]
    assert any("broken" in frame for line in logged for frame in line.get("at", []))
    assert [line["status"] for line in logged if "status" in line] == [500]


def test_a_port_in_use_shows_at_once(words: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(2, f"Cannot listen on 127.0.0.1:{port}", "serve", words, "--port", str(port))
    for host in ("no.such.host.invalid", "two..dots", "192.0.2.1"):
        with pytest.raises(ConfigError, match=f"Cannot listen on {host}:0 .*choose another --host"):
            listen(host, 0)
    fails(2, "Cannot listen on two..dots:0", "serve", words, "--port", "0", "--host", "two..dots")


def test_listening_to_everybody_without_a_key_warns(words: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104 - so that it ends at once
        flags = ("serve", words, "--host", "0.0.0.0", "--port", str(taken.getsockname()[1]))  # noqa: S104
        assert "Warning: listening on 0.0.0.0 without --api-key" in run(*flags).stderr
        assert "Warning" not in run(*flags, "--api-key", "k").stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--timeout", "0"), "--timeout must be more than 0"),
        (("--timeout", "nan"), "--timeout must be more than 0"),
        (("--drain", "inf"), "--drain must be more than 0 and at most"),
        (("--body-timeout", "-1"), "--body-timeout must be more than 0"),
        (("--max-wait-ms", "nan"), "--max-wait-ms must be between 0 and"),
        (("--max-wait-ms", "-1"), "--max-wait-ms must be between 0 and"),
        (("--max-batch", "0"), "--max-batch must be at least 1"),
        (("--workers", "-2"), "--workers must be at least 1"),
        (("--max-pixels", "0"), "--max-pixels must be at least 1"),
        (("--max-queue", "4"), "--max-inputs 256 would never fit into --max-queue 4"),
        (("--api-key", " "), "The API key is empty"),
        (("--adapter-dir", "/no/such/directory"), "--adapter-dir /no/such/directory is not a directory"),
    ],
)
def test_settings_that_cannot_work(words: Path, flags: tuple[str, ...], message: str) -> None:
    fails(2, message, "serve", words, *flags)


def test_bundles_that_cannot_be_served(words: Path, tmp_path: Path) -> None:
    other = word_bundle(tmp_path / "words")
    fails(2, "serve names 'words' twice: write NAME=PATH", "serve", words, other)
    fails(3, "Bundle not found", "serve", tmp_path / "nothing", "--port", "0")
    (other / "model.onnx").write_bytes(b"cut")
    fails(3, "differs from the manifest", "serve", other, "--port", "0")
