"""Memory and time of merging an adapter into a checkpoint far larger than the memory used.

Builds a sharded bfloat16 checkpoint with the shapes of Llama-7B (and two more layers, to reach 14 GB) and random weights,
and a rank-16 adapter on all of its projections; merges them in a new process and records the peak memory of that process.
Some rows of the result are compared with the sum computed here.

    python -m benchmarks.merge_memory --work /some/disk       # needs about 28 GB there, removed afterwards
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.results import environment, write_result
from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import INDEX_NAME, Checkpoint
from rmlora.package import load_package, save_package
from rmlora.storage import write_json
from rmlora_converters.delta import delta_rows
from rmlora_converters.shards import ShardEntry, write_shard

WIDTH, HIDDEN, LAYERS, VOCABULARY = 4096, 11008, 34, 32000
RANK, ALPHA = 16, 32
LAYERS_PER_SHARD = 11
"""About 4.5 GB a shard, as such checkpoints are published."""

PROJECTIONS = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (HIDDEN, WIDTH),
    "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}


def main() -> None:
    """Build, merge, check and report; or, with ``--worker``, be the process that merges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="directory to work in (default: the system's temporary directory)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="layers, 0.4 GB each (default %(default)s)")
    parser.add_argument("--worker", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        merge_here(*arguments.worker)
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as directory:
        result = measure(Path(directory), arguments.layers)
    print(write_result("merge_memory", result))
    print(
        f"{result['checkpoint_gb']:.1f} GB merged in {result['seconds']:.0f} s with {result['peak_mb']:.0f} MB at the most"
    )


def measure(work: Path, layers: int) -> dict[str, Any]:
    """Return the figures of one merge."""
    base, adapter, merged = work / "base", work / "adapter", work / "merged"
    nbytes = build_base(base, layers)
    build_adapter(adapter, layers)
    command = [sys.executable, "-m", "benchmarks.merge_memory", "--worker", str(base), str(adapter), str(merged)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    checked = spot_check(base, adapter, merged, layers)
    shutil.rmtree(merged)
    return {
        "environment": environment(),
        "settings": {"layers": layers, "rank": RANK, "modules": layers * len(PROJECTIONS), "dtype": "bfloat16"},
        "checkpoint_gb": nbytes / 1e9,
        "rows_checked": checked,
        **figures,
    }


def merge_here(base: Path, adapter: Path, output: Path) -> None:
    """Merge, and print seconds, peak memory and the largest rounding loss as JSON."""
    from rmlora_converters.checkpoint_merge import merge_checkpoint

    started = time.perf_counter()
    report = merge_checkpoint(base, load_package(adapter), output)
    figures = {
        "seconds": time.perf_counter() - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worst_loss": report.worst_loss,
        "shards": report.shards,
    }
    print(json.dumps(figures))


def build_base(path: Path, layers: int) -> int:
    """Write the checkpoint; return its bytes."""
    path.mkdir()
    block = (
        (np.random.default_rng(0).standard_normal(1 << 23, dtype=np.float32) * 0.02)
        .astype(ml_dtypes.bfloat16)
        .tobytes()
    )
    groups = [range(start, min(start + LAYERS_PER_SHARD, layers)) for start in range(0, layers, LAYERS_PER_SHARD)]
    weight_map: dict[str, str] = {}
    total = 0
    for number, group in enumerate(groups):
        entries = [
            ShardEntry(f"model.layers.{layer}.{name}.weight", "BF16", shape)
            for layer in group
            for name, shape in PROJECTIONS.items()
        ]
        if number == 0:
            entries.insert(0, ShardEntry("model.embed_tokens.weight", "BF16", (VOCABULARY, WIDTH)))
        if number == len(groups) - 1:
            entries.append(ShardEntry("lm_head.weight", "BF16", (VOCABULARY, WIDTH)))
        file_name = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        write_shard(path / file_name, entries, (_filled(entry.nbytes, block) for entry in entries), {"format": "pt"})
        weight_map.update({entry.name: file_name for entry in entries})
        total += sum(entry.nbytes for entry in entries)
    write_json(path / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(
        path / "config.json",
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False},
    )
    return total


def build_adapter(path: Path, layers: int) -> None:
    """Write a rank-16 adapter on every projection."""
    rng = np.random.default_rng(1)
    modules = {}
    for layer in range(layers):
        for name, (fan_out, fan_in) in PROJECTIONS.items():
            a = rng.standard_normal((RANK, fan_in), dtype=np.float32) * 0.02
            b = rng.standard_normal((fan_out, RANK), dtype=np.float32) * 0.02
            module = f"model.layers.{layer}.{name}"
            modules[module] = LoraModule(module, "linear", a, b, ALPHA / RANK)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM"}
    save_package(Adapter(modules=modules, peft_config=config), path)


def spot_check(base: Path, adapter: Path, merged: Path, layers: int) -> int:
    """Compare rows of the first, middle and last layer with the sum computed here; return the number of rows."""
    before, after, modules = Checkpoint(base), Checkpoint(merged), load_package(adapter).modules
    rows = 0
    for layer in {0, layers // 2, layers - 1}:
        for name, shape in PROJECTIONS.items():
            path = f"model.layers.{layer}.{name}"
            start = shape[0] // 3
            weight = before.tensors[f"{path}.weight"].read(start, start + 4).astype(np.float32)
            expected = (weight + delta_rows(modules[path], shape, start, start + 4)).astype(ml_dtypes.bfloat16)
            got = after.tensors[f"{path}.weight"].read(start, start + 4)
            # One unit in the last place: sums over blocks of another size may round the other way.
            np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=2**-7)
            rows += 4
    return rows


def _filled(nbytes: int, block: bytes) -> Iterator[bytes]:
    """Yield ``nbytes`` bytes of random weights, the same block again and again."""
    while nbytes > 0:
        yield block[: min(nbytes, len(block))]
        nbytes -= len(block)


if __name__ == "__main__":
    main()
