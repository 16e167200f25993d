"""Table: one optimizer step of RM-LoRA beside PEFT's LoRA, DoRA and AdaLoRA, and full fine-tuning.

All are a transformers ``Trainer`` on MiniLM, adapters of rank 8 on all 36 projections. They run in separate processes pinned
to the same cores, in alternating order, and each process reports the median of its steps after a warm-up. The time of
RM-LoRA's own callback is measured from inside; noise affects that figure least.

    python -m benchmarks.training_step           # writes benchmarks/results/training_step.json, about 12 minutes
    python -m benchmarks.training_step --quick   # build/speed-quick/training_step.json
"""

from __future__ import annotations

import statistics

from benchmarks.contest import Contestant, Table, make_parser, measure, save_table, settle, worker

LORA, RMLORA = "PEFT, LoRA", "ours, RM-LoRA"
METHODS = (
    (LORA, "lora", "peer", "rank 8"),
    (RMLORA, "rmlora", "ours", "rank 8"),
    ("PEFT, DoRA", "dora", "peer", "rank 8"),
    ("PEFT, AdaLoRA", "adalora", "peer", "rank 8"),
    ("full fine-tuning", "full", "peer", ""),
    ("floor: forward pass, only the head trains", "head", "floor", ""),
)


def main() -> None:
    """Measure and write the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, help="timed steps in each process (default 12, quick 3)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before timing (default %(default)s)")
    options = settle(parser.parse_args())
    job = {"steps": options.steps or (3 if options.quick else 12), "warmup": options.warmup}
    contestants = [
        Contestant(name, worker("training"), {**job, "method": method}, kind, group, quick=bool(group))
        for name, method, kind, group in METHODS
    ]
    table = Table("training_step", "One optimizer step, MiniLM, 32 × 64 tokens", "ms", LORA, ["step"])
    rows = measure(contestants, options, table)
    by_name = {row["name"]: row for row in rows}
    share = {}
    if "callback_ms" in by_name[RMLORA] and "figures" in by_name[LORA]:
        step = statistics.median(by_name[LORA]["figures"]["step"]["rounds"])
        share = {"callback_share": by_name[RMLORA]["callback_ms"] / step}
    save_table(table, rows, options, training=job, **share)


if __name__ == "__main__":
    main()
