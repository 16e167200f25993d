"""The manifest: bundles of older format versions open and give the same outputs, and a damaged key is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rmlora.errors import InputError
from rmlora_deploy import load
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import parse_manifest
from rmlora_deploy.inference import Classifier, Embedder
from tests.helpers.cli import ROOT, run

VERSION_1 = ROOT / "tests" / "fixtures" / "bundles-v1"
"""Bundles of format version 1, and the outputs they gave when they were made."""
EXPECTED = json.loads((VERSION_1 / "expected.json").read_text())
TEXTS = ["w1 w5 w3", "w2"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(VERSION_1, tmp_path / "old")
    return tmp_path / "old"


def test_bundles_of_version_1_open_and_give_the_same_outputs(old: Path) -> None:
    merged, vectors = load(old / "merged"), load(old / "vectors")
    assert isinstance(merged, Classifier) and isinstance(vectors, Embedder)
    for answer, expected in zip(merged.predict(TEXTS), EXPECTED["merged"], strict=True):
        assert [label for label, _ in answer.ranking] == [label for label, _ in expected]
        np.testing.assert_allclose([share for _, share in answer.ranking], [share for _, share in expected], rtol=1e-5)
    for name, expected in EXPECTED["vectors"].items():
        np.testing.assert_allclose(vectors.embed(TEXTS, name), expected, atol=1e-5)


def test_bundles_of_version_1_are_inspected_verified_and_changed(old: Path) -> None:
    for name in ("merged", "vectors"):
        assert run("inspect", old / name).code == 0
        done = run("verify", old / name, "--reference-only", "--json")
        assert done.code == 0, done.stderr
        assert json.loads(done.stdout)["passed"]
        manifest = json.loads((old / name / "manifest.json").read_text())
        assert manifest["format_version"] == 3 and "optimization" in manifest
    assert run("adapter", "remove", old / "vectors", "near").code == 0
    assert list(Bundle.open(old / "vectors").adapters) == ["far"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": None}, "has a wrong 'task'"),
        ({"precision": "fp8"}, "has a wrong 'precision'"),
        ({"labels": "many"}, "has a wrong 'labels'"),
        ({"surprise": 1}, "has a wrong 'surprise'"),
        ({"model": {}}, "lacks 'model.files'"),
        ({"format_version": 4}, "has format version 4, this program reads 3"),
    ],
)
def test_a_wrong_or_missing_key_is_named(change: dict[str, object], message: str) -> None:
    value = json.loads((VERSION_1 / "merged" / "manifest.json").read_text())
    with pytest.raises(InputError, match=message):
        parse_manifest({**value, **change}, where="manifest.json")
    with pytest.raises(InputError, match="has format version None"):
        parse_manifest([], where="manifest.json")
