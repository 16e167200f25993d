"""Small files from outside: every fault is one sentence with the file, and the key where there is one; nothing blocks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from rmlora.errors import CheckpointError, InputError
from rmlora.file_models import AdapterConfig, BaseConfig, ImageProcessorConfig, PackageMetadata, TokenizerConfig
from rmlora.json_files import check_file, check_values, parse_json, read_json, read_text
from rmlora.library_calls import library_call, reason_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.json"


def refused(file: Path) -> str:
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_json(file, what="Some file")
    assert time.monotonic() - start < 2
    message = str(caught.value)
    assert str(file) in message and "\n" not in message
    return message


def test_what_is_no_file_is_called_what_it_is(file: Path) -> None:
    assert "does not exist" in refused(file)
    os.mkfifo(file)
    assert "a pipe or a device" in refused(file)  # and it did not wait for a writer
    file.unlink()
    file.mkdir()
    assert "a directory" in refused(file)
    file.rmdir()
    file.symlink_to(file.name)
    assert "a link that leads to itself" in refused(file)
    file.unlink()
    file.symlink_to("/dev/zero")
    assert "a pipe or a device" in refused(file)
    with pytest.raises(InputError, match="null character"):
        check_file(Path("a\0b"), what="Some file")


def test_a_huge_file_is_not_read(file: Path) -> None:
    with open(file, "wb") as sparse:
        sparse.truncate(8 << 30)
    assert "8,589,934,592 bytes" in refused(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe{}", "cannot be read as UTF-8"),
        ("{}".encode("utf-16"), "cannot be read as UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b"[" * 100_000, "nested more than 100 levels"),
        (b"[" * 150 + b"]" * 150, "nested more than 100 levels"),
        (b'{"a": ' * 150 + b"1" + b"}" * 150, "nested more than 100 levels"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
    ],
)  # fmt: skip
def test_text_that_is_no_json_is_refused(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    assert message in refused(file)


def test_configurations_of_transformers_may_hold_infinity() -> None:
    text = '{"time_step_limit": [0.0, Infinity], "x": "\\ud83d\\ude00"}'
    assert parse_json(text, where="it", finite=False)["time_step_limit"][1] == float("inf")


def test_of_a_repeated_key_the_last_counts_as_in_peft_and_transformers() -> None:
    assert parse_json('{"r": 4, "r": 8}', where="it") == {"r": 8}


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    a: int
    b: dict[str, list[bool]] = {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "does not hold a JSON object, but a list"),
        (None, "does not hold a JSON object, but null"),
        ({}, "lacks 'a'"),
        ({"a": "1"}, "has a wrong 'a' (should be a valid integer, not \"1\")"),
        ({"a": 1, "b": {"x": [True, 2]}}, "has a wrong 'b.x.1'"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(value: object, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_values(_Model, value, where="FILE", advice="fetch it again", error=CheckpointError)
    assert message in str(caught.value) and str(caught.value).endswith(": fetch it again.")
    assert check_values(_Model, {"a": 1, "unknown": {}}, where="FILE", advice="").a == 1


@pytest.mark.parametrize(
    ("model", "value", "key"),
    [
        (AdapterConfig, {"r": "8"}, "r"),
        (AdapterConfig, {"r": 0}, "r"),
        (AdapterConfig, {"lora_alpha": [16]}, "lora_alpha"),
        (AdapterConfig, {"rank_pattern": {"query": 4.5}}, "rank_pattern.query"),
        (AdapterConfig, {"alpha_pattern": {"query": float("inf")}}, "alpha_pattern.query"),
        (AdapterConfig, {"auto_mapping": "x"}, "auto_mapping"),
        (PackageMetadata, {"labels": "spam"}, "labels"),
        (PackageMetadata, {"rank_mask": {"query": [1, 0]}}, "rank_mask.query.0"),
        (PackageMetadata, {"training": {"settings": {"max_length": "128"}}}, "training.settings.max_length"),
        (BaseConfig, {"id2label": {"spam": 0}}, "id2label"),
        (BaseConfig, {"num_labels": 10**9}, "num_labels"),
        (BaseConfig, {"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers"),
        (TokenizerConfig, {"model_max_length": "512"}, "model_max_length"),
        (TokenizerConfig, {"padding_side": "middle"}, "padding_side"),
        (ImageProcessorConfig, {"size": {"height": 10**6, "width": 8}}, "size"),
        (ImageProcessorConfig, {"image_mean": [0.5, None]}, "image_mean"),
    ],
)
def test_files_of_adapters_and_bases_are_typed(model: type[BaseModel], value: dict[str, object], key: str) -> None:
    with pytest.raises(InputError) as caught:
        check_values(model, value, where="FILE", advice="fetch it again")
    assert key in str(caught.value)


def test_keys_of_other_versions_stay() -> None:
    values = {
        "r": 8,
        "lora_alpha": 16,
        "use_new_method": {"a": [1]},
        "rank_pattern": None,
        "target_modules": "all-linear",
    }
    assert check_values(AdapterConfig, values, where="", advice="").model_dump()["use_new_method"] == {"a": [1]}
    check_values(PackageMetadata, {"labels": [0, 1, "spam"], "training": None}, where="", advice="")
    values = {
        "id2label": {"0": "a", "1": 7},
        "num_hidden_layers": 126,
        "ffn_size_per_layer": 9000,
        "vision_feature_layer": -2,
    }
    check_values(BaseConfig, values, where="", advice="")


def test_texts_are_utf_8(file: Path) -> None:
    file.write_bytes("größe".encode("latin-1"))
    with pytest.raises(InputError, match="cannot be read as UTF-8 .* at byte 2"):
        read_text(file, what="Some file")


def test_whatever_a_library_throws_becomes_one_sentence() -> None:
    class PanicException(BaseException):  # as pyo3's, which is no Exception
        pass

    for error in (
        KeyError("x"),
        RuntimeError("first:\n  second\nthird"),
        MemoryError(),
        PanicException("panicked"),
        RecursionError(),
    ):
        with pytest.raises(InputError) as caught, library_call(lambda reason: InputError(f"FILE ({reason})")):
            raise error
        assert str(caught.value).startswith("FILE (") and "\n" not in str(caught.value)
    with pytest.raises(CheckpointError), library_call(InputError):
        raise CheckpointError("ours")
    with pytest.raises(KeyboardInterrupt), library_call(InputError):
        raise KeyboardInterrupt
    assert reason_of(RuntimeError("first:\n  second\nthird")) == "first: second"
    assert len(reason_of(ValueError("x" * 5000))) == 300
    assert reason_of(ValueError("\ud800")).encode()
    assert json.dumps(reason_of(ValueError())) == '"ValueError"'
