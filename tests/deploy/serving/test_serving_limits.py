"""Refusals: oversized, slow, malformed and hostile requests are refused in the right format and do no harm."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmlora_deploy.loadtest.callers import list_models
from tests.helpers.handmade import word_bundle
from tests.helpers.servers import Answer, Server, ask, classify, held_back, serving, until

TEXT = {"model": "words", "input": "w1 w2"}


@pytest.fixture(scope="module")
def server(served: dict[str, Path]) -> Iterator[Server]:
    limits = {"max_inputs": 4, "max_characters": 50, "max_pixels": 10_000, "max_body": 20_000, "body_timeout": 0.5}
    with serving(served, adapter_dirs=(served["many"].parent,), **limits) as running:
        yield running
        assert classify(running.url, "words", "w0")[0][0] > 0.9  # after all of it


def refused(answer: Answer, status: int, message: str) -> None:
    """Assert that a request was refused in the interface's format, with a message that shows nothing internal."""
    assert answer.status == status, answer.text
    assert message in answer.message, answer.message
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert "Traceback" not in answer.text and 'File "' not in answer.text
    assert len(answer.text) < 600


# -- too much --------------------------------------------------------------------------------------------------------


def test_inputs_characters_and_bytes_are_limited(server: Server) -> None:
    refused(ask(server.url, "/classify", {"model": "words", "input": ["w1"] * 5}), 400, "takes 1 to 4 inputs, not 5")
    refused(ask(server.url, "/classify", {"model": "words", "input": []}), 400, "takes 1 to 4 inputs, not 0")
    refused(
        ask(server.url, "/classify", {"model": "words", "input": ["w1", "w" * 51]}), 400, "Input 2 has 51 characters"
    )
    for text in ("", "   ", "\n\t"):
        refused(ask(server.url, "/classify", {"model": "words", "input": ["w1", text]}), 400, "Text 2 is empty")
    large = {"model": "words", "input": "w" * 20_000}
    refused(ask(server.url, "/classify", large), 413, "larger than the 20000 bytes")
    assert ask(server.url, "/classify", {"model": "words", "input": ["w" * 50] * 4}).status == 200


def test_raw_tensors_are_limited_to_the_models_tokens_and_ids(server: Server) -> None:
    def tensors(tokens: int, number: int = 1) -> dict[str, Any]:
        data = {"datatype": "INT64", "shape": [1, tokens], "data": [number] * tokens}
        return {"inputs": [{"name": name, **data} for name in ("input_ids", "attention_mask")]}

    assert ask(server.url, "/v2/models/words/infer", tensors(32)).status == 200
    refused(ask(server.url, "/v2/models/words/infer", tensors(33)), 400, "has 33 tokens; the limit is 32")
    # A GPU would look up zeros for them, and answer.
    refused(
        ask(server.url, "/v2/models/words/infer", tensors(2, 10**6)),
        400,
        "'input_ids' holds 1000000, but the model has",
    )


def raw(server: Server, *parts: bytes, wait: float = 30.0) -> bytes:
    """Send bytes as they are, and return everything received until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=wait) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def head(path: str = "/classify", *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *lines, "", ""]).encode("latin-1")


JSON = "content-type: application/json"


def test_a_stream_without_a_length_is_limited_too(server: Server) -> None:
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    answer = raw(server, head("/classify", JSON, "transfer-encoding: chunked"), chunk * 6)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer


def test_a_slow_body_is_not_waited_for(server: Server) -> None:
    answer = raw(server, head("/classify", JSON, "content-length: 100"), b'{"model"')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 0.5 s" in answer
    assert raw(server, head("/nowhere", JSON, "content-length: 100"), b"{").startswith(b"HTTP/1.1 404")  # and closes


def test_slow_and_endless_headers_end_the_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmlora_deploy.serving.connection._HEAD_SECONDS", 0.3)
    assert raw(server) == b""
    assert raw(server, b"POST /classify HT") == b""
    assert raw(server, b"GET /healthz HTTP/1.1\r\nhost: here\r\nx-slow: ") == b""
    monkeypatch.undo()
    with pytest.raises(ConnectionError):  # it stops reading, and closes
        raw(server, b"GET /healthz HTTP/1.1\r\n", *[b"x-more: " + b"y" * 60_000 + b"\r\n"] * 100)
        raise ConnectionError  # or the answer could be read
    assert ask(server.url, "/healthz").status == 200


def test_requests_in_one_packet_are_answered_in_order(server: Server) -> None:
    body = [json.dumps({"model": "words", "input": f"w{number}"}).encode() for number in range(3)]
    sent = b"".join(head("/classify", JSON, f"content-length: {len(item)}") + item for item in body)
    answer = raw(server, sent + head("/healthz", "connection: close", method="GET"))
    labels = [answer.find(f'"label":"{label}"'.encode()) for label in ("red", "green", "blue")]
    assert -1 < labels[0] < labels[1] < labels[2] < answer.find(b'{"live":true}')


# -- images ----------------------------------------------------------------------------------------------------------


def image(size: tuple[int, int] = (20, 20), form: str = "PNG", color: tuple[int, int, int] = (255, 0, 0)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_images_come_as_data_urls_and_nothing_is_fetched(server: Server) -> None:
    for number, form in enumerate(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")):
        color = [0, 0, 0]
        color[number % 3] = 255
        (shares,) = classify(server.url, "colors", image(form=form, color=tuple(color)))  # type: ignore[arg-type]
        assert int(np.argmax(shares)) == number % 3, form
    for url in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "/etc/passwd", "w1 w2", "data:text/plain,hello"):
        refused(
            ask(server.url, "/classify", {"model": "colors", "input": url}),
            400,
            "must be an image as  data:image/png",
        )


def test_damaged_images_and_bombs_are_refused(server: Server) -> None:
    whole = image()
    program = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n").decode()
    for url in (
        whole[: len(whole) // 2 // 4 * 4], "data:image/png;base64,", "data:image/png;base64,%%%",
        "data:image/png;base64," + base64.b64encode(b"no image").decode(), f"data:image/png;base64,{program}",
    ):  # fmt: skip
        refused(
            ask(server.url, "/classify", {"model": "colors", "input": [whole, url]}),
            400,
            "Input 2 cannot be decoded as an image",
        )
    bomb = image((1500, 1500))
    assert len(bomb) < 20_000
    refused(
        ask(server.url, "/classify", {"model": "colors", "input": bomb}), 400, "1500 × 1500 pixels; the limit is 10000"
    )


# -- malformed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "has no body: send JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "body"),
        (b'{"model": "words", "input": "\xff"}', "body"),
        (b'{"model": "words", "input": "w1\x00"}', "not valid JSON"),
        (b"[1, 2]", "valid dictionary"),
        (b"null", "valid dictionary"),
        (b'{"model": "words"}', "input"),
        (b'{"model": 5, "input": "w1"}', "model"),
        (b'{"model": "words", "input": {"a": 1}}', "input"),
        (b'{"model": "words", "input": ["w1", 5]}', "input"),
        (b'{"model": "words", "input": NaN}', "input"),
        (b'{"model": "words", "input": ' + b"9" * 5000 + b"}", "body"),
        (b"[" * 15_000, "body"),
        (b'{"model": "words", "input": ' + b"[" * 9000 + b"]" * 9000 + b"}", "body"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "body"),
        (b'{"model": "words", "input": "\\ud800"}', "Text 1 is not valid Unicode"),
        (b'{"model": "words", "input": ["w1", "w2 \\udfff"]}', "Text 2 is not valid Unicode"),
    ],
    ids=range(18),
)  # fmt: skip
def test_bodies_that_are_no_request(server: Server, body: bytes, message: str) -> None:
    refused(ask(server.url, "/classify", body), 400, message)


@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_a_body_must_say_that_it_is_json(server: Server, path: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = ask(server.url, path, json.dumps(TEXT).encode(), content_type=kind)
        refused(answer, 415, "Content-Type: application/json")
    assert ask(server.url, "/classify", TEXT, content_type="application/json; charset=utf-8").status == 200


def test_what_is_odd_but_means_something_is_answered(server: Server) -> None:
    refused(ask(server.url, "/classify", b'{"model": "\\ud800", "input": "w1"}'), 404, "There is no model")
    twice = b'{"model": "colors", "model": "words", "input": "w9", "input": "w1 w1", "more": [1, {}]}'
    assert ask(server.url, "/classify", twice).body["data"][0]["label"] == "green"
    assert classify(server.url, "words", "w0 \x00 \u202e 😀 \x1b[31m")[0][0] > 0.9


def test_a_long_list_of_mistakes_costs_nothing(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}) as running:
        body = b'{"model": "words", "input": [' + b"1," * 2_000_000 + b"1]}"
        refused(ask(running.url, "/classify", body, timeout=20), 400, "input")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v2/nowhere", 404),
        ("GET", "/classify", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/classify", 405),
        ("PUT", "/v2/models/words/infer", 405),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/docs/files/..%2f..%2f__init__.py", 404),
        ("GET", "/v1/models/%00%ff%0a", 404),
        ("GET", "/v1/models/" + "a" * 5000, 404),
        ("GET", "/v2/models/..%2f..%2fetc/ready", 404),
        ("TRACE", "/healthz", 405),
    ],
)
def test_unknown_paths_and_methods(server: Server, method: str, path: str, status: int) -> None:
    answer = ask(server.url, path, method=method)
    refused(answer, status, "")
    assert isinstance(answer.body["error"], str if path.startswith("/v2") else dict)


def test_what_is_not_http_is_refused(server: Server) -> None:
    for sent in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"HELO mail\r\n\r\n"):
        assert raw(server, sent).startswith(b"HTTP/1.1 400")
    both = head("/classify", JSON, "content-length: 5", "transfer-encoding: chunked")
    assert raw(server, both, b"0\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(server, head("/classify", "content-length: -1")).startswith(b"HTTP/1.1 400")
    assert ask(server.url, "/healthz").status == 200


# -- key, ids --------------------------------------------------------------------------------------------------------


def test_a_key_opens_everything_but_health_and_the_page(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}, api_key="sésame") as running:
        key = "Bearer sésame".encode().decode("latin-1")
        for path in ("/", "/healthz", "/readyz", "/v2/health/ready", "/docs", "/openapi.json", "/static/docs.js"):
            assert ask(running.url, path).status == 200, path
        for path, body in (
            ("/v1/models", None),
            ("/metrics", None),
            ("/stats", None),
            ("/classify", TEXT),
            ("/nowhere", None),
        ):
            for wrong in (
                {},
                {"authorization": "Bearer "},
                {"authorization": f"Basic {key}"},
                {"authorization": key + "x"},
            ):
                answer = ask(running.url, path, body, **wrong)
                refused(answer, 401, "Authorization: Bearer KEY")
                assert answer.headers["www-authenticate"] == "Bearer"
            assert ask(running.url, path, body, authorization=key).status == (404 if path == "/nowhere" else 200)
            assert ask(running.url, path, body, authorization=key.replace("B", "b", 1)).status != 401
        refused(ask(running.url, "/v2/models/words"), 401, "Authorization")
        large = head("/classify", JSON, "content-length: 999999999")
        assert raw(running, large).startswith(b"HTTP/1.1 401")  # the key comes first, and the connection is closed
        keyed = head("/classify", JSON, "content-length: 999999999", f"authorization: {key}")
        assert raw(running, keyed).startswith(b"HTTP/1.1 413")


def test_a_key_may_end_like_a_line(tmp_path: Path) -> None:
    """A key from a mounted secret, with the end of its line, let nobody in."""
    with serving({"words": word_bundle(tmp_path / "words")}, api_key=" secret\n") as running:
        assert ask(running.url, "/v1/models", authorization="Bearer secret").status == 200
        assert ask(running.url, "/v1/models", authorization="Bearer secre").status == 401
        assert list(asyncio.run(list_models(running.url, "secret\n"))) == ["words"]


def test_a_clients_request_id_is_kept_where_it_is_harmless(server: Server) -> None:
    assert ask(server.url, "/healthz", x_request_id="a-1.B_c").headers["x-request-id"] == "a-1.B_c"
    for bad in ("", "a b", 'a"b', "a" * 65, "ä", "a;b"):
        answer = ask(server.url, "/healthz", x_request_id=bad).headers["x-request-id"]
        assert answer != bad and len(answer) == 32


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_a_429_that_says_when_to_come_back(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}, max_queue=3, max_inputs=3, max_batch=2) as running:
        assert running.registry is not None
        with ThreadPoolExecutor(2) as callers, held_back(running, "words") as begun:
            first = callers.submit(classify, running.url, "words", "w0")
            assert begun.acquire(timeout=30)
            waiting = callers.submit(classify, running.url, "words", "w1", "w2")
            until(lambda: running.registry.waiting == 2)
            for path, body in (("/classify", {"model": "words", "input": ["w1", "w2"]}),):
                answer = ask(running.url, path, body)
                refused(answer, 429, "2 rows are waiting and at most 3 may. Try again in")
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.body["error"]["type"] == "rate_limit_error"
            assert ask(running.url, "/healthz").status == 200
        assert np.argmax(first.result()[0]) == 0
        assert [int(np.argmax(row)) for row in waiting.result()] == [1, 2]


def test_an_answer_that_is_late_is_a_504_and_its_rows_leave(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}, timeout=0.3) as running:
        assert running.registry is not None
        with held_back(running, "words") as begun, ThreadPoolExecutor(3) as callers:
            first = callers.submit(ask, running.url, "/classify", TEXT)
            assert begun.acquire(timeout=30)
            late = list(callers.map(lambda _: ask(running.url, "/classify", TEXT), range(2)))
            for answer in (first.result(), *late):
                refused(answer, 504, "was no answer within 0.3 s")
            assert running.registry.waiting == 0
        assert np.argmax(classify(running.url, "words", "w2")[0]) == 2


def test_clients_that_go_away_leave_nothing_behind(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}, max_batch=1) as running:
        assert running.registry is not None
        body = json.dumps(TEXT).encode()
        request = head("/classify", JSON, f"content-length: {len(body)}") + body

        def send(sent: bytes) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])))
            connection.sendall(sent)
            return connection

        with held_back(running, "words") as begun:
            computed = send(request)
            assert begun.acquire(timeout=30)
            waits, incomplete = send(request), send(request[:-5])
            until(lambda: running.registry.waiting == 1)
            for connection in (computed, waits, incomplete):
                connection.close()
            until(lambda: running.registry.waiting == 0)  # long before its time limit
        assert np.argmax(classify(running.url, "words", "w1")[0]) == 1
        assert not begun.acquire(timeout=0)  # what nobody waits for was not computed


def test_bodies_together_are_limited(served: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmlora_deploy.serving.middleware.limits._HELD_BODIES", 2)
    with serving({"words": served["words"]}, max_body=1000, max_batch=1) as running:
        assert running.registry is not None
        with ThreadPoolExecutor(2) as callers, held_back(running, "words") as begun:
            body = {"model": "words", "input": "w0", "padding": "x" * 800}
            two = [callers.submit(ask, running.url, "/classify", body) for _ in range(2)]
            assert begun.acquire(timeout=30)
            until(lambda: running.registry.waiting == 1)
            answer = ask(running.url, "/classify", body)
            refused(answer, 429, "Too many large requests")
            assert answer.headers["retry-after"] == "1"
        assert [future.result().status for future in two] == [200, 200]
        assert ask(running.url, "/classify", body).status == 200
