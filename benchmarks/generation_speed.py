"""Table: a language model's steps with and without adapters, in one graph of ours and beside its peers.

Rank 8 on all 210 projections of SmolLM2-135M, weights in int8. The merged bundle is the builder's own graph, so it shows what
branches cost.

    python -m benchmarks.generation_speed           # writes benchmarks/results/generation_speed.json, about 8 minutes
    python -m benchmarks.generation_speed --quick   # build/speed-quick/generation_speed.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.assets import smollm2
from benchmarks.contest import Contestant, Table, make_parser, measure, save_table, settle, worker
from benchmarks.random_adapters import save_random_adapter
from benchmarks.speed_models import command
from rmlora.storage import atomic_directory

ADAPTERS = 8
MERGED = "merged bundle"
COLUMNS = ("step, 1 row", "step, 8 rows", "read 96", "read 512")
OURS = (
    ("no adapter", "none", ""),
    ("one adapter for all rows", "one", "one adapter"),
    ("one adapter, graph of its own", "specialized", "one adapter"),
    ("an adapter in every row", "each", "an adapter in every row"),
)
"""Row of the table → use of adapters, and the group in which it is compared with the peers."""


def main() -> None:
    """Make the bundles, measure them and write the table."""
    options = settle(make_parser(__doc__, rounds=7, seconds=1.0).parse_args())
    bundles = make_bundles(options.work / "generation")
    job = {"bundles": str(bundles), "base": str(smollm2()), "seconds": options.seconds}
    table = Table(
        "generation_speed",
        "SmolLM2-135M in int8, token by token",
        "ms",
        MERGED,
        COLUMNS,
        note="A step gives every row its next token, after 96 others. Reading is that of one prompt with so many tokens. "
        "Of 8 rows with one adapter each has a copy, so that no row depends on the others.",
    )
    save_table(table, measure(list_contestants(job), options, table), options)


def make_bundles(work: Path) -> Path:
    """Export a merged bundle and one with branches and random adapters, once; return their directory."""
    directory = work / "bundles"
    if directory.is_dir():
        return directory
    adapters = [
        save_random_adapter(smollm2(), "text-generation", work / f"a{number}", rank=8, seed=number, size=0.01)
        for number in range(ADAPTERS)
    ]
    with atomic_directory(directory) as made:
        for mode, chosen in (("merged", adapters[:1]), ("branches", adapters)):
            flags = [word for path in chosen for word in ("--adapter", f"{path.name}={path}")]
            command(
                "export",
                smollm2(),
                "--mode",
                mode,
                *flags,
                "--output",
                made / mode,
                "--precision",
                "int8",
                "--no-verify",
            )
    return directory


def list_contestants(job: dict[str, Any]) -> list[Contestant]:
    """Return ours and the others."""
    ours, others = worker("generation_ours"), worker("generation_others")
    return [
        Contestant(MERGED, ours, {**job, "use": "merged"}),
        *(Contestant(f"ours, {name}", ours, {**job, "use": use}, group=group) for name, use, group in OURS),
        Contestant("onnxruntime_genai, merged", others, {**job, "way": "genai"}, kind="peer"),
        Contestant("onnxruntime_genai, one adapter", others, {**job, "way": "genai_adapter"}, kind="peer", group="one adapter"),
        *(
            Contestant(f"{name}, {dtype}", others, {**job, "way": way, "dtype": dtype}, kind="peer", group=group, quick=quick)
            for name, way, group, quick in (
                ("PEFT, one adapter", "peft", "one adapter", True),
                ("PEFT's adapter_names", "peft_each", "an adapter in every row", False),
                ("PyTorch, merged", "torch", "", False),
            )
            for dtype in ("float32", "bfloat16")
            if quick or dtype == "float32"
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
