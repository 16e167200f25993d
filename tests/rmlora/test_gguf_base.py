"""A GGUF file is a base only if it holds all weights of its model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import load_file

from rmlora.base import resolve_base
from rmlora.errors import CheckpointError

HIDDEN, TOKENS, INNER = 32, 8, 48
SHAPES = {
    "token_embd.weight": (TOKENS, HIDDEN), "output_norm.weight": (HIDDEN,), "output.weight": (TOKENS, HIDDEN),
    "blk.0.attn_norm.weight": (HIDDEN,), "blk.0.ffn_norm.weight": (HIDDEN,),
    **{f"blk.0.attn_{name}.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")},
    "blk.0.ffn_gate.weight": (INNER, HIDDEN), "blk.0.ffn_up.weight": (INNER, HIDDEN), "blk.0.ffn_down.weight": (HIDDEN, INNER),
}  # fmt: skip


def write(path: Path, without: Collection[str] = ()) -> Path:
    """Write a Llama of one layer, without some of its tensors."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(TOKENS)
    writer.add_rope_dimension_count(HIDDEN // 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c", "d", "ab", "bc", "cd", "<e>"])
    writer.add_token_types([1] * 7 + [3])
    writer.add_token_merges(["a b", "b c", "c d"])
    writer.add_eos_token_id(7)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        if name not in without:
            writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMLORA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("without", "tensors"), [((), 12), (("output.weight",), 11)])
def test_a_whole_file_is_converted(without: tuple[str, ...], tensors: int, tmp_path: Path) -> None:
    base = resolve_base(write(tmp_path / "model.gguf", without))
    assert len(load_file(base / "model.safetensors")) == tensors


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("model-00001-of-00002.gguf", "one part of several, join them with  llama-gguf-split"),
        ("model.gguf", "fetch it again"),
    ],
)
def test_a_file_that_lacks_weights_is_refused(name: str, advice: str, tmp_path: Path) -> None:
    file = write(tmp_path / name, ["blk.0.ffn_down.weight"])
    with pytest.raises(CheckpointError, match=rf"lacks weights of its model, such as '.*down_proj.weight': .*{advice}"):
        resolve_base(file)
    assert not (tmp_path / "cache" / "gguf").exists()
