"""``train --push-to-hub``: what is missing is found before training, and the package arrives as it is on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from rmlora.errors import OutputError
from rmlora.training.hub_repository import HubRepository
from tests.helpers.cli import fails, run, text_base, text_data
from tests.helpers.hub_server import TOKEN, Hub, serve_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield hub


def words(directory: Path) -> list[str | Path]:
    base = text_base(directory / "base")
    return ["train", "--base", base, "--train", text_data(directory / "train.jsonl"), "-o", directory / "out",
            "--epochs", "1", "--push-to-hub", "colors"]  # fmt: skip


def test_the_package_arrives_as_it_is_on_disk(hub: Hub, tmp_path: Path) -> None:
    done = run(*words(tmp_path), "--hub-private", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["hub"] == f"{hub.address}/someone/colors"
    assert hub.private == {"someone/colors": True}
    package = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert {"adapter_model.safetensors", "rmlora.json", "README.md"} <= package.keys()
    assert hub.files["someone/colors"] == package


def test_what_is_missing_is_found_before_training(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = words(tmp_path)
    fails(8, "cannot be made", *command[:-1], "no/such/name")
    fails(2, "--hub-private is for a new repository", *command[:-2], "--hub-private")
    monkeypatch.setenv("HF_TOKEN", "another")
    fails(8, "cannot be made", *command)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    fails(2, "needs a token of the Hugging Face hub", *command)
    assert not (tmp_path / "out").exists() and hub.files == {}


def test_a_package_that_the_hub_refuses_is_complete_on_disk(hub: Hub, tmp_path: Path) -> None:
    repository = HubRepository.make("team/colors", private=False)
    hub.full = True
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "README.md").write_text("A card.")
    with pytest.raises(OutputError, match=r"is complete in .*hf upload team/colors"):
        repository.upload(tmp_path / "package")
    hub.full = False
    assert repository.upload(tmp_path / "package") == f"{hub.address}/team/colors"
    assert HubRepository.make("team/colors", private=True) == repository and hub.private == {"team/colors": False}
