"""A tiny base and labeled sentences to train it on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.cli import text_base, text_data


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_base(tmp_path_factory.mktemp("base") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_data(tmp_path_factory.mktemp("data") / "train.jsonl")
