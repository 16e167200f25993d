"""A server without a key and the web: pages elsewhere can neither use it nor read from it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmlora_deploy.serving.host_names import LOOPBACK_HOSTS, hosts_for
from tests.helpers.cli import fails, run
from tests.helpers.handmade import word_bundle
from tests.helpers.servers import Answer, Server, ask, served_by_command, serving

TEXT = {"model": "words", "input": "w1 w2"}
ADAPTER = {"lora_name": "new", "lora_path": "three"}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_bundle(tmp_path_factory.mktemp("pages") / "words")


@pytest.fixture(scope="module")
def server(served: dict[str, Path]) -> Iterator[Server]:
    with serving(served, adapter_dirs=(served["many"].parent,)) as running:
        yield running


def refused(answer: Answer, status: int, message: str) -> bool:
    return answer.status == status and message in answer.message


CALLS = [
    ("/classify", TEXT), ("/v1/embeddings", TEXT), ("/v1/load_lora_adapter", ADAPTER), ("/v1/unload_lora_adapter", ADAPTER),
    ("/v2/models/words/infer", {"inputs": []}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body"), [*CALLS, ("/v1/models", None), ("/v1/models/words", None), ("/stats", None), ("/v2", None)]
)
def test_a_name_that_a_page_made_lead_here_is_refused(server: Server, path: str, body: object) -> None:
    for host in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "a@localhost",
        "local\thost",
        "localh\u00f6st",
        "/",
    ):
        assert refused(ask(server.url, path, body, host=host), 403, "does not answer to the name"), host
    port = server.url.rpartition(":")[2]
    for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1:1", "[::1]", f"[::1]:{port}"):
        assert ask(server.url, path, body, host=host).status != 403


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_a_page_from_elsewhere_is_refused(server: Server, path: str, body: object) -> None:
    for origin in (
        "http://evil.example",
        "null",
        "http://localhost:3000",
        "file://",
        "chrome-extension://x",
    ):
        assert refused(ask(server.url, path, body, origin=origin), 403, "does not answer to the web page"), origin
    assert ask(server.url, path, body, origin=server.url).status != 403


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_what_a_page_can_send_without_asking_is_no_request(server: Server, path: str, body: object) -> None:
    """A browser asks first before it sends JSON elsewhere, and is not answered."""
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "text/plain; a=application/json",
        "",
    ):
        assert refused(ask(server.url, path, body, content_type=kind), 415, "Content-Type: application/json"), kind
    undeclared = raw(server, path, "Origin: " + server.url)
    assert undeclared.startswith(b"HTTP/1.1 415"), undeclared
    asked_first = ask(server.url, path, method="OPTIONS", origin="http://evil.example")
    assert "access-control-allow-origin" not in asked_first.headers
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        assert ask(server.url, path, body, content_type=kind).status not in (403, 415)


def raw(server: Server, path: str, *lines: str) -> bytes:
    """POST an empty object without saying what it is."""
    host = server.url.removeprefix("http://")
    head = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Length: 2", "Connection: close", *lines, "", "{}"]
    with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall("\r\n".join(head).encode())
        return connection.makefile("rb").read()


def test_checks_and_the_page_answer_under_every_name(server: Server) -> None:
    for path in (
        "/", "/static/app.js", "/docs", "/openapi.json", "/health", "/healthz", "/readyz", "/v2/health/live",
        "/v2/health/ready", "/metrics",
    ):  # fmt: skip
        for headers in ({"host": "10.0.0.7:8000"}, {"origin": "http://evil.example"}):
            assert ask(server.url, path, **headers).status == 200, path


def test_a_key_lets_clients_use_any_name_unless_names_are_given(served: dict[str, Path]) -> None:
    key = {"authorization": "Bearer k"}
    with serving(served, api_key="k", allowed_hosts=hosts_for("0.0.0.0", (), key=True)) as running:  # noqa: S104
        assert ask(running.url, "/v1/models", host="models.example", **key).status == 200
        assert ask(running.url, "/v1/models", host="models.example").status == 401
    given = hosts_for("127.0.0.1", ("models.example", "[fd00::7]:80"), key=True)
    with serving(served, api_key="k", allowed_hosts=given) as running:
        for host, status in (("models.example", 200), ("[fd00::7]:80", 200), ("[fd00::7]", 403), ("evil.example", 403)):
            assert ask(running.url, "/v1/models", host=host, **key).status == status
        for origin, status in (
            ("https://models.example", 200),
            ("http://models.example:81", 200),
            ("http://evil.example", 403),
        ):
            assert ask(running.url, "/classify", TEXT, origin=origin, **key).status == status


def test_which_names_are_allowed() -> None:
    assert hosts_for("127.0.0.1", (), key=False) == LOOPBACK_HOSTS
    assert hosts_for("192.168.1.7", ("Lab.local",), key=False) == (*LOOPBACK_HOSTS, "192.168.1.7", "lab.local")
    assert hosts_for("::", (), key=False) == (*LOOPBACK_HOSTS, "[::]")
    assert hosts_for("0.0.0.0", (), key=True) == ()  # noqa: S104
    assert hosts_for("0.0.0.0", ("a", "*"), key=False) == ()  # noqa: S104


def test_the_command_says_which_names_it_answers_to(words: Path) -> None:
    with served_by_command(words, "--host", "0.0.0.0", "--allowed-host", "lab.local") as running:  # noqa: S104
        url = running.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        assert ask(url, "/classify", TEXT, host="lab.local:8000").status == 200
        assert refused(ask(url, "/classify", TEXT, host="10.0.0.7:8000"), 403, "--allowed-host and that name")
    fails(2, "--allowed-host 'http://a' is not a host", "serve", words, "--allowed-host", "http://a")
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104 - so that it ends at once
        flags = ("serve", words, "--host", "0.0.0.0", "--port", str(taken.getsockname()[1]))  # noqa: S104
        said = " ".join(run(*flags).stderr.split())
        assert "answers to localhost, 127.0.0.1, [::1], 0.0.0.0; add names with --allowed-host" in said
