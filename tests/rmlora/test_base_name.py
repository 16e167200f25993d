"""A base is doubted only if it is called otherwise than the adapter has it, and nothing better tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmlora.base_name import doubtful_base


def adapter(directory: Path, name: object, **metadata: object) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": name}))
    if metadata:
        (directory / "rmlora.json").write_text(json.dumps(metadata))
    return directory


@pytest.mark.parametrize(
    ("recorded", "base"),
    [
        ("meta-llama/Llama-3", "meta-llama/Llama-3"),
        ("meta-llama/Llama-3", "models/llama-3/"),
        ("/home/me/Llama-3/", "/elsewhere/Llama-3"),
        ("C:\\models\\Llama-3", "Llama-3"),
        ("/root/.cache/huggingface/hub/models--meta-llama--Llama-3/snapshots/0123abcd", "meta-llama/Llama-3"),
        ("meta-llama/Llama-3", "Llama-3-Q4_1.gguf"),
        ("", "Llama-3"),
        (None, "Llama-3"),
        ("..", "Llama-3"),
    ],
)
def test_the_usual_ways_to_name_a_base_are_not_doubted(recorded: object, base: str, tmp_path: Path) -> None:
    assert doubtful_base(adapter(tmp_path / "a", recorded), base) is None


def test_a_name_that_the_base_has_nowhere_is_doubted(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    other = adapter(tmp_path / "a", "meta-llama/Llama-3")
    assert doubtful_base(other, str(base)) == "meta-llama/Llama-3"
    assert doubtful_base(other, "Llama-2.gguf") == "meta-llama/Llama-3"
    (base / "config.json").write_text(json.dumps({"_name_or_path": "elsewhere/llama-3"}))
    assert doubtful_base(other, str(base)) is None
    (tmp_path / "link").symlink_to(base)
    assert doubtful_base(adapter(tmp_path / "b", str(base)), str(tmp_path / "link")) is None


def test_a_fingerprint_tells_more_than_a_name(tmp_path: Path) -> None:
    assert doubtful_base(adapter(tmp_path / "a", "x", base_weights={"q": "0"}, base_model="x"), "y") is None
    assert doubtful_base(adapter(tmp_path / "b", "x", base_model="z"), "y") == "z"
    assert doubtful_base(tmp_path / "nowhere", "y") is None
