"""Real servers on loopback: in a thread of the test process, or as the command line in another process."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmlora_deploy.serving import Registry, ServeSettings
from rmlora_deploy.serving.metrics import Metrics
from rmlora_deploy.serving.queue import Row
from rmlora_deploy.serving.server import HttpServer
from tests.helpers.branch_graphs import make_adapter, make_base
from tests.helpers.cli import CONSOLE_SCRIPT, environment, run
from tests.helpers.handmade import color_bundle, word_bundle

ADAPTERS = {"one": 2, "two": 4, "three": 6}
"""Adapter of the bundle with branches → its rank; labels as in ``tests.helpers.branch_graphs.LABELS``."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    registry: Registry | None = None
    """Its registry, if it runs in this process."""
    process: subprocess.Popen[str] | None = None


def make_served(directory: Path) -> dict[str, Path]:
    """Make what tests serve: ``many`` (three adapters as branches), ``words`` and ``colors`` (merged, handmade).

    ``directory / "one"`` and its like are the adapter packages.
    """
    base = make_base("bert", directory)
    flags = [
        part
        for name, rank in ADAPTERS.items()
        for part in ("-a", f"{name}={make_adapter('bert', directory, name, rank=rank)}")
    ]
    done = run("export", base, "--mode", "branches", *flags, "-o", directory / "many", "--no-verify")
    assert done.code == 0, done.stderr
    return {
        "many": directory / "many",
        "words": word_bundle(directory / "words"),
        "colors": color_bundle(directory / "colors"),
    }


def reference(adapter: Path | None, texts: Sequence[str], *, base: Path) -> list[list[float]]:
    """Return PEFT's probabilities for every text, each run alone; those of the base if there is no adapter."""
    labels = len(json.loads((adapter / "rmlora.json").read_text())["labels"]) if adapter else 3
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)
    adapted = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()
    tokens = AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        logits = [adapted(**tokens(text, return_tensors="pt")).logits[0] for text in texts]
    return [row.softmax(-1).tolist() for row in logits]


@dataclass(frozen=True)
class Answer:
    """A server's response."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    text: str

    @property
    def body(self) -> Any:
        """The JSON in it."""
        return json.loads(self.text)

    @property
    def message(self) -> str:
        """The message of an error, in either interface's format."""
        error = self.body["error"]
        return error if isinstance(error, str) else error["message"]


def ask(
    url: str, path: str, body: Any = None, *, method: str | None = None, timeout: float = 60, **headers: str
) -> Answer:
    """Send one request; ``body`` is sent as JSON unless it is bytes already, ``x_request_id`` is a header's name."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None:
        sent.setdefault("content-type", "application/json")
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
        reply = connection.getresponse()
        got = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, got, reply.read().decode())
    finally:
        connection.close()


def classify(url: str, model: str, *texts: str, **headers: str) -> list[list[float]]:
    """Return the server's probabilities for each text."""
    answer = ask(url, "/classify", {"model": model, "input": list(texts)}, timeout=60, **headers)
    assert answer.status == 200, answer.text
    assert answer.body["model"] == model
    return [item["probs"] for item in answer.body["data"]]


@contextmanager
def serving(bundles: Mapping[str, Path], **settings: Any) -> Iterator[Server]:
    """Serve ``bundles`` from a thread of this process until the block ends."""
    metrics = Metrics()
    registry = Registry(ServeSettings(**{"threads": 1, **settings}), metrics.batch)
    for name, path in bundles.items():
        registry.open(path, name=name)
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(registry, metrics)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended while it started"
            time.sleep(0.01)
        yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", registry)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def served_by_command(*words: str | Path, cwd: Path | None = None, **more: str) -> Iterator[Server]:
    """Run ``rmlora-deploy serve`` in ``cwd`` on a free port, and stop it with SIGTERM; ``more`` goes into its environment."""
    command = [str(CONSOLE_SCRIPT), "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**more), cwd=cwd)
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://[\d.:]+", line):
                break
        else:
            raise AssertionError("".join(said))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # its log, which would fill the pipe
        yield Server(found.group(), process=process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def until(true: Callable[[], bool]) -> None:
    """Wait until another thread has made ``true`` return True."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def held_back(running: Server, bundle: str) -> Iterator[threading.Semaphore]:
    """Hold back every batch of ``bundle`` until the block ends; the semaphore is released when a batch begins."""
    assert running.registry is not None
    queue = running.registry.runners[bundle].queue
    going, begun, run = threading.Event(), threading.Semaphore(0), queue._run

    def wait(rows: Sequence[Row]) -> Sequence[Any]:
        begun.release()
        assert going.wait(60)
        return run(rows)

    queue._run = wait
    try:
        yield begun
    finally:
        going.set()
        queue._run = run
