"""What the merge benchmarks merge: a sharded checkpoint of a Llama model with random weights, and an adapter on all projections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import INDEX_NAME, Checkpoint
from rmlora.package import load_package, save_package
from rmlora.storage import write_json
from rmlora.tensors import DTYPES
from rmlora_converters.delta import delta_rows
from rmlora_converters.shards import ShardEntry, ShardWriter

__all__ = ["ALPHA", "LLAMA_7B", "RANK", "TINY_LLAMA", "Shapes", "build_adapter", "build_base", "spot_check"]

RANK, ALPHA = 16, 32


@dataclass(frozen=True)
class Shapes:
    """Sizes of a Llama model."""

    width: int
    key_width: int
    hidden: int
    vocabulary: int
    layers_per_shard: int

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Projections of a layer, with the shapes of their weights."""
        return {
            "self_attn.q_proj": (self.width, self.width),
            "self_attn.k_proj": (self.key_width, self.width),
            "self_attn.v_proj": (self.key_width, self.width),
            "self_attn.o_proj": (self.width, self.width),
            "mlp.gate_proj": (self.hidden, self.width),
            "mlp.up_proj": (self.hidden, self.width),
            "mlp.down_proj": (self.width, self.hidden),
        }

    def config(self, layers: int) -> dict[str, object]:
        """Return the model's configuration."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "tie_word_embeddings": False,
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_attention_heads": self.width // 64,
            "num_key_value_heads": self.key_width // 64,
            "num_hidden_layers": layers,
            "vocab_size": self.vocabulary,
        }


LLAMA_7B = Shapes(width=4096, key_width=4096, hidden=11008, vocabulary=32000, layers_per_shard=11)
"""About 4.5 GB a shard, as such checkpoints are published."""
TINY_LLAMA = Shapes(width=2048, key_width=256, hidden=5632, vocabulary=32000, layers_per_shard=11)


def build_base(path: Path, shapes: Shapes, layers: int, dtype: str = "BF16") -> int:
    """Write the checkpoint, the same random values again and again; return the bytes of its tensors."""
    path.mkdir()
    values = np.random.default_rng(0).standard_normal(1 << 23, dtype=np.float32) * np.float32(0.02)
    block = values.astype(DTYPES[dtype]).tobytes()
    groups = [
        range(start, min(start + shapes.layers_per_shard, layers))
        for start in range(0, layers, shapes.layers_per_shard)
    ]
    weight_map: dict[str, str] = {}
    total = 0
    for number, group in enumerate(groups):
        entries = _entries(shapes, group, dtype)
        if number == 0:
            entries.insert(0, ShardEntry("model.embed_tokens.weight", dtype, (shapes.vocabulary, shapes.width)))
        if number == len(groups) - 1:
            entries.append(ShardEntry("model.norm.weight", dtype, (shapes.width,)))
            entries.append(ShardEntry("lm_head.weight", dtype, (shapes.vocabulary, shapes.width)))
        file_name = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        with ShardWriter(path / file_name, entries, {"format": "pt"}) as shard:
            for entry in entries:
                _fill(shard, shard.starts[entry.name], entry.nbytes, block)
        weight_map.update({entry.name: file_name for entry in entries})
        total += sum(entry.nbytes for entry in entries)
    write_json(path / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(path / "config.json", {**shapes.config(layers), "dtype": DTYPES[dtype].name})
    return total


def build_adapter(path: Path, shapes: Shapes, layers: int) -> None:
    """Write a rank-16 adapter on every projection."""
    rng = np.random.default_rng(1)
    modules = {}
    for layer in range(layers):
        for name, (fan_out, fan_in) in shapes.projections.items():
            a = rng.standard_normal((RANK, fan_in), dtype=np.float32) * np.float32(0.02)
            b = rng.standard_normal((fan_out, RANK), dtype=np.float32) * np.float32(0.02)
            module = f"model.layers.{layer}.{name}"
            modules[module] = LoraModule(module, "linear", a, b, ALPHA / RANK)
    targets = sorted(name.rpartition(".")[2] for name in shapes.projections)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM", "target_modules": targets}
    save_package(Adapter(modules=modules, peft_config=config), path)


def spot_check(base: Path, adapter: Path, merged: Path, shapes: Shapes, layers: int) -> int:
    """Compare rows of the first, middle and last layer with the sum computed here; return the number of rows.

    Raises:
        AssertionError: one differs by more than a unit in the last place of bfloat16.
    """
    before, after, modules = Checkpoint(base), Checkpoint(merged), load_package(adapter).modules
    rows = 0
    for layer in {0, layers // 2, layers - 1}:
        for name, shape in shapes.projections.items():
            path = f"model.layers.{layer}.{name}"
            start = shape[0] // 3
            weight = before.tensors[f"{path}.weight"].read(start, start + 4)
            expected = (weight.astype(np.float32) + delta_rows(modules[path], shape, start, start + 4)).astype(
                weight.dtype
            )
            got = after.tensors[f"{path}.weight"].read(start, start + 4)
            # One unit in the last place: sums over blocks of another size may round the other way.
            np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=2**-7, atol=1e-6)
            rows += 4
    return rows


def _entries(shapes: Shapes, layers: range, dtype: str) -> list[ShardEntry]:
    return [
        ShardEntry(f"model.layers.{layer}.{name}.weight", dtype, shape)
        for layer in layers
        for name, shape in (
            *shapes.projections.items(),
            ("input_layernorm", (shapes.width,)),
            ("post_attention_layernorm", (shapes.width,)),
        )
    ]


def _fill(shard: ShardWriter, position: int, nbytes: int, block: bytes) -> None:
    for start in range(0, nbytes, len(block)):
        shard.write(position + start, block[: min(nbytes - start, len(block))])
