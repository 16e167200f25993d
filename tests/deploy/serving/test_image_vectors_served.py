"""Vectors of images over HTTP: the routes are those of texts, and the inputs ``data:`` URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmlora_deploy.inference.embedder import Embedder
from tests.helpers.handmade import color_bundle, word_bundle
from tests.helpers.servers import Server, ask, serving

COLORS = [(250, 10, 10), (20, 240, 30), (240, 20, 60)]


def picture(color: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (20, 20), color)


def url(color: tuple[int, int, int]) -> str:
    buffer = io.BytesIO()
    picture(color).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_bundle(tmp_path_factory.mktemp("images") / "colors", labels=(), task="image-feature-extraction")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    texts = word_bundle(bundle.parent / "words", labels=(), task="feature-extraction")
    with serving({"colors": bundle, "words": texts}) as running:
        yield running


@pytest.fixture(scope="module")
def right(bundle: Path) -> np.ndarray:
    return Embedder.open(bundle).embed([picture(color) for color in COLORS])


@pytest.fixture(scope="module")
def unit(right: np.ndarray) -> np.ndarray:
    return right / np.linalg.norm(right, axis=1, keepdims=True)


def test_every_route_of_vectors_takes_images(server: Server, right: np.ndarray, unit: np.ndarray) -> None:
    urls = [url(color) for color in COLORS]
    answer = ask(server.url, "/v1/embeddings", {"model": "colors", "input": urls})
    np.testing.assert_allclose([item["embedding"] for item in answer.body["data"]], right, atol=1e-6)
    assert answer.body["usage"]["total_tokens"] == 0
    answer = ask(server.url, "/embed", {"model": "colors", "inputs": urls[0]})
    np.testing.assert_allclose(answer.body, unit[:1], atol=1e-6)
    for task in ("feature-extraction", "image-feature-extraction"):
        answer = ask(server.url, f"/models/colors/pipeline/{task}", {"inputs": urls, "normalize": False})
        np.testing.assert_allclose(answer.body, right, atol=1e-6)
    inputs = {"source_sentence": urls[0], "sentences": urls[1:]}
    answer = ask(server.url, "/similarity", {"model": "colors", "inputs": inputs})
    np.testing.assert_allclose(answer.body, unit[1:] @ unit[0], atol=1e-6)


def test_what_the_models_are_is_said_and_what_they_cannot_read_refused(server: Server) -> None:
    about = ask(server.url, "/info?model=colors").body
    assert about["model_id"] == "colors" and about["model_type"] == {"embedding": {"pooling": None}}
    answer = ask(server.url, "/embed", {"model": "colors", "inputs": "a red car"})
    assert answer.status == 400 and "Input 1 must be an image" in answer.text
    answer = ask(server.url, "/classify", {"model": "colors", "input": url(COLORS[0])})
    assert answer.status == 400 and "'colors' is for image-feature-extraction and has no labels" in answer.text
