"""Images over HTTP in the form of Hugging Face's Inference API: as the body itself, and in base64."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from tests.helpers.handmade import color_bundle, word_bundle
from tests.helpers.servers import Answer, Server, ask, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("images")
    bundles = {
        "colors": color_bundle(directory / "colors"),
        "vectors": color_bundle(directory / "vectors", labels=(), task="image-feature-extraction"),
        "words": word_bundle(directory / "words"),
    }
    with serving(bundles) as running:
        yield running


@pytest.fixture
def red(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (250, 20, 10)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def send(server: Server, path: str, content: bytes, kind: str) -> Answer:
    return ask(server.url, path, content, content_type=kind)


def test_hugging_face_client_classifies_an_image(server: Server, red: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)  # of the tests, for the hub
    client = InferenceClient(model=f"{server.url}/models/colors")
    found: Any = client.image_classification(str(red))
    assert found[0].label == "red" and len(found) == 3
    assert sum(element.score for element in found) == pytest.approx(1)
    best: Any = client.image_classification(str(red), top_k=1)
    assert best == found[:1]
    outputs: Any = client.image_classification(str(red), function_to_apply="none")
    assert outputs[0].label == "red" and sum(element.score for element in outputs) != pytest.approx(1)


def test_image_is_read_as_classify_reads_it(server: Server, red: Path) -> None:
    content = red.read_bytes()
    whole = send(server, "/models/colors", content, "image/png").body
    assert send(server, "/models/colors", content, "image/*; q=1").body == whole
    coded = b64encode(content).decode()
    for inputs in (coded, f"data:image/png;base64,{coded}"):
        assert ask(server.url, "/models/colors", {"inputs": inputs}).body == whole
        assert ask(server.url, "/models/colors", {"inputs": [inputs, inputs]}).body == [whole, whole]
    buffer = io.BytesIO()
    Image.open(red).save(buffer, "BMP")  # larger than what is parsed at once
    Image.effect_noise((600, 400), 50).save(large := io.BytesIO(), "BMP")
    assert send(server, "/models/colors", buffer.getvalue(), "image/bmp").body[0]["label"] == "red"
    assert len(send(server, "/models/colors", large.getvalue(), "image/bmp").body) == 3


@pytest.mark.parametrize(
    ("name", "content", "kind", "status", "message"),
    [
        ("colors", None, "text/plain", 415, "application/json. An image may be the body itself, with  Content-Type: image/png"),
        ("words", None, "image/png", 400, "'words' is for text-classification and reads no images: send JSON"),
        ("vectors", None, "image/png", 400, "'vectors' is for image-feature-extraction"),
        ("colors", b"no image", "image/png", 400, "Input 1 cannot be decoded as an image"),
        ("colors", b"", "image/png", 400, "body"),
        ("none", None, "image/png", 404, "none"),
    ],
)  # fmt: skip
def test_other_bodies_are_refused(
    server: Server, red: Path, name: str, content: bytes | None, kind: str, status: int, message: str
) -> None:
    answer = send(server, f"/models/{name}", red.read_bytes() if content is None else content, kind)
    assert answer.status == status and message in answer.text


def test_other_routes_take_no_bare_image(server: Server, red: Path) -> None:
    for route in ("/classify", "/predict", "/models/vectors/pipeline/image-feature-extraction"):
        answer = send(server, route, red.read_bytes(), "image/png")
        assert answer.status == 415 and "must be JSON" in answer.text
