"""Bundles with branches of a base that has no head of its own: every adapter brings one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rmlora.errors import InputError
from rmlora.package import load_package, save_package
from rmlora_deploy.inference.classifier import Classifier
from tests.helpers.branch_graphs import make_adapter, make_base
from tests.helpers.cli import fails, run
from tests.helpers.exports import with_bias
from tests.helpers.models import save_base


def test_a_base_without_a_head_needs_an_adapter(tmp_path: Path) -> None:
    base = make_base("bert", tmp_path)
    one = make_adapter("bert", tmp_path, "one")
    bare = save_base(with_bias("bert").bert, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, bare / name)
    done = run("export", bare, "--mode", "branches", "-a", one, "-o", tmp_path / "bundle")
    assert done.code == 0, done.stderr
    classifier = Classifier.open(tmp_path / "bundle")
    assert classifier.bundle.labels == []
    with pytest.raises(InputError, match="no trained 'classifier' of its own: name an adapter"):
        classifier.predict(["w1"], None)
    headless = load_package(one)
    save_package(
        replace(headless, modules_to_save={}, metadata={"task": "text-classification", "labels": ["a", "b"]}),
        tmp_path / "h",
    )
    words = ("adapter", "add", tmp_path / "bundle", tmp_path / "h")
    fails(3, "h records 2 labels, but contains no head, and its base has 3 labels: train it again", *words)
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    save_package(replace(load_package(tmp_path / "h"), metadata={"task": "text-classification"}), tmp_path / "plain")
    assert len(config["id2label"]) == 3
    fails(3, "has no 'classifier.weight', and neither has the base", *words[:3], tmp_path / "plain")
