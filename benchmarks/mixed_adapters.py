"""Table: a batch of 8 rows, each with an adapter of its own, in one graph of ours and in every other way we know.

Rank 8 on all 36 projections of MiniLM. ``benchmarks.branches`` measures more of our own settings; the contestants here run
at the same sizes beside PEFT's ``adapter_names``, onnxruntime's own ``LoraAdapter`` and merged models.

    python -m benchmarks.mixed_adapters           # writes benchmarks/results/mixed_adapters.json, about 8 minutes
    python -m benchmarks.mixed_adapters --quick   # build/speed-quick/mixed_adapters.json
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.assets import minilm
from benchmarks.branches import export_int8
from benchmarks.contest import Contestant, Table, make_parser, measure, save_table, settle, worker
from benchmarks.speed_models import mixed_bundles
from benchmarks.worker import shape_name

SHAPES = ((8, 16), (8, 32), (8, 128))
QUICK_SHAPES = ((8, 32),)
MERGED = "merged model, fp32"
OURS = (
    ("one adapter for all rows", "one adapter", "one adapter"),
    ("one adapter, graph of its own", "one adapter, graph of its own", "one adapter"),
    ("an adapter in every row", "one for each row", "an adapter in every row"),
    ("an adapter in every row, at random", "each row at random", ""),
    ("the same, 1,000 adapters registered", "each row at random, 1000 known", ""),
    ("an adapter in every row, int8 base", "one for each row, int8", ""),
)
"""Row of the table → contestant of ``benchmarks.branches``, and the group in which it is compared with the peers."""

NOT_QUICK = {
    "ours, an adapter in every row, at random", "ours, the same, 1,000 adapters registered",
    "ours, an adapter in every row, int8 base", "ours, one adapter, graph of its own", "PEFT, one adapter",
    "floor: the same with the branches' products",
}  # fmt: skip
NO_OPENVINO = (
    "OpenVINO applies LoRA adapters in openvino_genai only, to all rows of a generation pipeline, and not to an encoder"
)


def main() -> None:
    """Make the bundles, measure them and write the table."""
    options = settle(make_parser(__doc__).parse_args())
    bundles = mixed_bundles(options.work)
    shapes = QUICK_SHAPES if options.quick else SHAPES
    job = {"bundles": str(bundles), "seconds": options.seconds, "shapes": shapes, "checkpoint": str(minilm())}
    table = Table(
        "mixed_adapters",
        "Eight adapters in a batch of 8",
        "ms",
        MERGED,
        [shape_name(*shape) for shape in shapes],
        note="Columns are rows × tokens. The merged model has one adapter for all rows and shows what branches cost.",
    )
    contestants = [
        replace(item, job={**job, **item.job}, quick=item.name not in NOT_QUICK)
        for item in list_contestants(bundles, int8=not options.quick)
    ]
    save_table(table, measure(contestants, options, table), options)


def list_contestants(bundles: Path, *, int8: bool) -> Iterator[Contestant]:
    """Yield ours, the others and the floor."""
    yield Contestant(MERGED, worker("mixed_ours"), {"contestant": "merged"})
    for name, contestant, group in OURS:
        reason = _int8_missing(bundles) if "int8" in name and int8 else None
        yield Contestant(f"ours, {name}", worker("mixed_ours"), {"contestant": contestant}, group=group, missing=reason)
    for name, way, group in (
        ("onnxruntime's LoraAdapter, one for all rows", "one_run", "one adapter"),
        ("PEFT, one adapter", "peft_one", "one adapter"),
        ("onnxruntime's LoraAdapter, one run after another", "runs", "an adapter in every row"),
        ("merged models, one run after another", "merged", "an adapter in every row"),
    ):
        yield Contestant(name, worker("mixed_others"), {"way": way}, kind="peer", group=group)
    job = {"contestant": "PEFT, one for each row"}
    group = "an adapter in every row"
    yield Contestant("PEFT's adapter_names", worker("mixed_ours"), job, kind="peer", group=group)
    yield Contestant("OpenVINO", kind="peer", group=group, missing=NO_OPENVINO)
    for name, rank in (("floor: the encoder's products", 0), ("floor: the same with the branches' products", 8)):
        yield Contestant(name, worker("floors"), {"floor": "products", "rank": rank}, kind="floor")


def _int8_missing(bundles: Path) -> str | None:
    """Export the branches on an int8 base, and return why that was refused, or None."""
    if not (bundles / "branches-int8").is_dir():
        try:
            export_int8(bundles)
        except subprocess.CalledProcessError as error:
            return f"export --precision int8 ended with exit code {error.returncode}: its own checks refuse the graph"
    return None


if __name__ == "__main__":
    main()
