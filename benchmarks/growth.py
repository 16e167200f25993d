"""Tables and curves: how each cost grows with rows, tokens, rank, registered adapters, model size and threads.

python -m benchmarks.growth                    # writes growth_*.json, about 20 minutes; the models need 12 GB of disk
python -m benchmarks.growth --axis rank        # only this one
python -m benchmarks.growth --quick            # few points, without sizes, in build/speed-quick
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.assets import minilm
from benchmarks.contest import THREADS, Contestant, Table, make_parser, measure, save_table, settle, worker
from benchmarks.encoder_speed import openvino, torch_contestants
from benchmarks.random_adapters import save_random_adapter
from benchmarks.speed_models import SpeedModels, command, mixed_bundles
from rmlora.storage import atomic_directory

MERGED, MIXED, PEFT = "ours, merged", "ours, an adapter in every row", "PEFT's adapter_names"
SHAPE = (8, 32)
Sizes = Sequence[tuple[int, int]]

MODELS = {"22 M": (384, 6), "110 M": (768, 12), "335 M": (1024, 24), "1 B": (2048, 20)}
"""Column → width and number of layers of a BERT with random weights."""


def main() -> None:
    """Measure the axes in turn."""
    parser = make_parser(__doc__, rounds=3, seconds=0.4)
    parser.add_argument("--axis", action="append", choices=AXES, help="measure only this axis; repeatable")
    options = settle(parser.parse_args())
    for axis in options.axis or [axis for axis in AXES if not (options.quick and axis == "size")]:
        print(f"-- {axis}", flush=True)
        table, contestants = AXES[axis](options)
        save_table(table, measure(contestants, options, table), options)


def rows_axis(options: argparse.Namespace) -> tuple[Table, list[Contestant]]:
    """Return the table over the rows of a batch."""
    counts = (1, 8, 64) if options.quick else (1, 2, 4, 8, 16, 32, 64)
    table = Table("growth_rows", "Rows of a batch, 32 tokens each", "ms", MERGED, [str(n) for n in counts], axis="rows")
    return table, list(_encoders(options, table, [(count, 32) for count in counts]))


def tokens_axis(options: argparse.Namespace) -> tuple[Table, list[Contestant]]:
    """Return the table over the tokens of a row."""
    counts = (16, 64, 256) if options.quick else (16, 32, 64, 128, 256)
    table = Table("growth_tokens", "Tokens of a row, 8 rows", "ms", MERGED, [str(n) for n in counts], axis="tokens")
    return table, list(_encoders(options, table, [(8, count) for count in counts]))


def threads_axis(options: argparse.Namespace) -> tuple[Table, list[Contestant]]:
    """Return the table over the threads, each on a core of its own."""
    counts = [count for count in (1, 2) if count <= THREADS]
    table = Table("growth_threads", "Threads, 8 × 32 tokens", "ms", MERGED, [str(n) for n in counts], axis="threads")
    merged, _, pytorch, vino, *_ = _encoders(options, table, [SHAPE])
    more = {"thread_counts": counts, "columns": None}
    return table, [_with(item, **more) for item in (merged, pytorch, vino)]


def _encoders(options: argparse.Namespace, table: Table, shapes: Sizes) -> Iterator[Contestant]:
    """Yield the engines that the axes of batches compare."""
    models, bundles = SpeedModels(options.work), mixed_bundles(options.work)
    job = {"seconds": options.seconds, "shapes": shapes, "columns": table.columns}
    ours = {**job, "bundle": str(models.bundle()), "provider": "cpu"}
    yield Contestant(MERGED, worker("encoder_ours"), ours, group="one adapter")
    mixed = {**job, "bundles": str(bundles)}
    ours = {**mixed, "contestant": "one for each row"}
    yield Contestant(MIXED, worker("mixed_ours"), ours, group="an adapter per row", quick=False)
    sdpa = next(item for item in torch_contestants(str(models.checkpoint()), "cpu") if item.name == "PyTorch, SDPA")
    yield _with(sdpa, group="one adapter", **job)
    yield _with(next(openvino(models)), group="one adapter", **job)
    mixed["contestant"] = "PEFT, one for each row"
    yield Contestant(PEFT, worker("mixed_ours"), mixed, "peer", "an adapter per row", quick=False)
    floor = {**job, "floor": "products", "checkpoint": str(minilm())}
    yield Contestant("floor: the products alone", worker("floors"), floor, "floor", "one adapter", quick=False)


def rank_axis(options: argparse.Namespace) -> tuple[Table, list[Contestant]]:
    """Return the table over the rank of eight adapters in a batch of 8."""
    ranks = (4, 64) if options.quick else (4, 8, 16, 32, 64)
    table = Table(
        "growth_rank", "Rank of the adapters, one in every row, 8 × 32 tokens", "ms", MIXED, [str(n) for n in ranks],
        axis="rank",
    )  # fmt: skip
    job = {"bundles": str(mixed_bundles(options.work)), "ranks": ranks, "shape": SHAPE, "seconds": options.seconds}
    ways = ((MIXED, "ours", "ours"), (PEFT, "peft", "peer"))
    return table, [Contestant(name, worker("growth_rank"), {**job, "way": way}, kind) for name, way, kind in ways]


def adapters_axis(options: argparse.Namespace) -> tuple[Table, list[Contestant]]:
    """Return the table over the number of registered adapters."""
    counts = (10, 1000) if options.quick else (10, 100, 1000, 10_000)
    columns = [(f"{count:,}", count) for count in counts]
    reference = "ours, 8 of them in use"
    table = Table(
        "growth_adapters", "Registered adapters, one in every row, 8 × 32 tokens", "ms", reference,
        [column for column, _ in columns], axis="adapters",
        note="PEFT holds every adapter in memory and in the model's modules: its time to load 1,000 exceeds the benchmark's.",
    )  # fmt: skip
    job = {"bundles": str(mixed_bundles(options.work)), "counts": columns, "shape": SHAPE, "seconds": options.seconds}
    ways = ((reference, "few"), ("ours, Zipf 1.0 over all, 64 in memory", "zipf"))
    return table, [Contestant(name, worker("growth_adapters"), {**job, "use": use}) for name, use in ways]


def size_axis(options: argparse.Namespace) -> tuple[Table, list[Contestant]]:
    """Return the table over the size of the model."""
    columns = list(MODELS)[:2] if options.quick else list(MODELS)
    models = [(column, str(random_model(options.work, column))) for column in columns]
    table = Table(
        "growth_size", "Parameters of the encoder, 1 × 32 tokens", "ms", MERGED, columns, axis="parameters",
        note="BERT-shaped encoders with random weights; the parameters are those of the layers and embeddings of BERT.",
    )  # fmt: skip
    job = {"models": models, "shape": (1, 32), "seconds": options.seconds}
    ways = (
        (MERGED, "ours", "ours"),
        ("PyTorch, SDPA", "torch", "peer"),
        ("floor: the products alone", "floor", "floor"),
    )
    return table, [Contestant(name, worker("growth_size"), {**job, "way": way}, kind) for name, way, kind in ways]  # type: ignore[arg-type]


def random_model(work: Path, column: str) -> Path:
    """Make an encoder with random weights, and its bundle with a merged adapter; return their directory."""
    import torch
    from transformers import BertConfig, BertModel

    path = work / f"random-{column.replace(' ', '')}"
    if path.is_dir():
        return path
    width, layers = MODELS[column]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )  # fmt: skip
    with atomic_directory(path) as directory:
        base = directory / "base"
        model = BertModel(config)
        model.save_pretrained(base)
        del model
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            if (minilm() / name).is_file():
                shutil.copy(minilm() / name, base / name)
        adapter = save_random_adapter(base, "feature-extraction", directory / "adapter", rank=8, seed=0, size=0.02)
        command("export", base, "--adapter", adapter, "--output", directory / "bundle", "--no-verify")
    return path


def _with(item: Contestant, *, group: str | None = None, **job: Any) -> Contestant:
    return replace(item, group=item.group if group is None else group, job={**item.job, **job})


AXES: dict[str, Callable[[argparse.Namespace], tuple[Table, list[Contestant]]]] = {
    "rows": rows_axis,
    "tokens": tokens_axis,
    "rank": rank_axis,
    "adapters": adapters_axis,
    "size": size_axis,
    "threads": threads_axis,
}

if __name__ == "__main__":
    main()
