"""Tensors of types that nothing is computed with are copied, and stay aligned."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from rmlora.adapter import Adapter, LoraModule
from rmlora.errors import InputError
from rmlora.tensors import TensorFile
from rmlora_converters.checkpoint_merge import merge_checkpoint
from rmlora_converters.shards import ShardEntry

WIDTH = 8


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """Write a safetensors file of tensors given by type, shape and content."""
    header, content = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def test_types_that_are_only_copied(tmp_path: Path) -> None:
    """Scales of quantized experts, packed numbers of 4 bits, and rotations stored as complex numbers."""
    weight = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    others = {
        "scale": ("F8_E8M0", [3], b"abc"),
        "packed": ("F4", [2, 5], b"defgh"),
        "turns": ("C64", [2], bytes(range(16))),
    }
    (tmp_path / "base").mkdir()
    write(tmp_path / "base" / "model.safetensors", {"q.weight": ("F32", [WIDTH, WIDTH], weight.tobytes()), **others})
    (tmp_path / "base" / "config.json").write_text("{}")
    ones = np.ones((2, WIDTH), np.float32)
    merge_checkpoint(tmp_path / "base", Adapter({"q": LoraModule("q", "linear", ones, ones.T, 0.5)}), tmp_path / "out")
    merged = TensorFile(tmp_path / "out" / "model.safetensors").infos
    np.testing.assert_allclose(merged["q.weight"].read(), weight + 1, rtol=1e-6)
    for name, (dtype, shape, data) in others.items():
        info = merged[name]
        assert (info.dtype, list(info.shape), info.read_bytes(0, info.nbytes)) == (dtype, shape, data)
    assert merged["turns"].offset % 8 == 0


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(InputError, match="tensor 'x' has the type X9, which is not supported"):
        _ = ShardEntry("x", "X9", (1,)).nbytes
