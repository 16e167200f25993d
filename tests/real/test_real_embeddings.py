"""MiniLM as the sentence encoder it is, with adapters beside it, by sentence-transformers' definition of its vectors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.assets import minilm
from benchmarks.random_adapters import save_random_adapter
from rmlora.sample_data import SENTENCES as TEXTS
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.precision import lower_precision
from rmlora_deploy.inference.embedder import Embedder, cosines
from rmlora_deploy.runtime import AdapterSession
from tests.helpers.cli import run
from tests.helpers.encoders import peft_vectors

pytestmark = pytest.mark.e2e

RANKS = {"small": 4, "large": 16}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with adapters and a bundle of them."""
    directory = tmp_path_factory.mktemp("real-vectors")
    for name, rank in RANKS.items():
        save_random_adapter(minilm(), "feature-extraction", directory / name, rank=rank, seed=rank)
    flags = [part for name in RANKS for part in ("-a", directory / name)]
    done = run("export", minilm(), "--mode", "branches", *flags, "-o", directory / "bundle")
    assert done.code == 0, done.stderr
    assert "Pooling: mean, normalized (from the files of the base)" in done.stdout
    assert "least cosine" in done.stdout
    return directory


def test_base_and_adapters_give_the_vectors_of_sentence_transformers(home: Path) -> None:
    bundle = Bundle.open(home / "bundle")
    assert bundle.manifest.pooling.to_dict() == {"mode": "mean", "normalize": True, "source": "base"}
    assert bundle.manifest.max_length == 256  # sentence-transformers' file, not the tokenizer's 512
    assert len(bundle.lora_inputs().modules) == 36
    report = bundle.manifest.verification.to_dict()
    assert report["base"]["bit_equal"] and report["mixed"]["max_relative_error"] <= 1e-5
    embedder = Embedder.open(home / "bundle")
    for name in (None, *RANKS):
        expected = peft_vectors(minilm(), home / name if name else None, TEXTS)
        got = embedder.embed(TEXTS, name)
        assert got.shape == (len(TEXTS), 384)
        assert np.abs(got - expected).max() <= 1e-5
    questions = [
        "How many moons does Jupiter have ?",
        "What is the number of Jupiter's moons ?",
        "Ok, see you at seven.",
    ]
    alike = cosines(embedder.embed(questions))
    assert alike[0, 1] > 0.8 > 0.3 > alike[0, 2]  # what the base was trained for


def test_int8_quantizes_every_layer_and_keeps_the_direction(home: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(home / "bundle")
    lower_precision(bundle.model_path, tmp_path / "int8.onnx", "int8")
    assert sum(path.stat().st_size for path in tmp_path.glob("int8.onnx*")) < 25e6
    session = AdapterSession(tmp_path / "int8.onnx")
    arrays = bundle.preprocessor()(TEXTS)
    for name in RANKS:
        session.register(name, partial(read_onnx_adapter, bundle.path / bundle.adapter(name).file))
        expected = Embedder(bundle).embed(TEXTS, name)
        assert (np.stack(session.run(arrays, name)) * expected).sum(1).min() > 0.95
