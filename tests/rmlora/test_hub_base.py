"""Of a base on the hub everything is downloaded that loading, training and the adapter's card read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from rmlora.base import resolve_base
from rmlora.errors import ConfigError
from tests.helpers.own_code import make_own_code

EXTRAS = (
    "README.md",
    "vocabulary.tiktoken",
    "consolidated.safetensors",
    "pytorch_model.bin",
    "tf_model.h5",
    "photo.png",
)


def test_code_card_and_tokenizers_are_downloaded_and_other_weights_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, _ = make_own_code(tmp_path)
    for name in EXTRAS:
        (repository / name).write_text("of a repository")
    monkeypatch.chdir(tmp_path)

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        files = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / "snapshot" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / file, tmp_path / "snapshot" / file)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = {path.name for path in resolve_base("owner/own-bert").iterdir()}
    assert {"own_code.py", "README.md", "vocabulary.tiktoken", "model.safetensors", "config.json"} <= found
    assert found.isdisjoint({"consolidated.safetensors", "pytorch_model.bin", "tf_model.h5", "photo.png"})


def test_a_revision_of_a_base_that_is_here_is_refused(tmp_path: Path) -> None:
    repository, _ = make_own_code(tmp_path)
    with pytest.raises(ConfigError, match="--revision v1 is of a base on the hub"):
        resolve_base(repository, revision="v1")
