"""The whole workflow on real models and data, offline: what ``make demo`` runs.

Two RM-LoRA adapters for MiniLM (SMS spam, question type) are trained, compared with plain LoRA, merged, exported, verified,
measured and used for predictions. Each step is a command that a user would type, and is printed.

    python -m benchmarks.demo [--work build/demo] [--record]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.assets import minilm
from benchmarks.demo_steps import demo_parser, empty_directory, run, title
from benchmarks.realdata import write_splits
from benchmarks.results import environment, write_result
from rmlora.storage import write_json

TASKS = {
    "spam": ("sms", 1200, ["--epochs", "2", "--max-length", "32"]),
    "trec": ("trec", 2200, ["--epochs", "3", "--max-length", "32", "--group-by-length"]),
}
"""Adapter → dataset, training examples, settings."""

PRECISIONS = {"spam": "fp32", "trec": "int8"}
"""Adapter → precision of its bundle."""

PROJECTIONS = ["query", "key", "value", "intermediate.dense", "output.dense"]
"""The paper's choice: all 36 projections of the encoder."""

SENTENCES = [
    "Congratulations! You have won a free holiday, call 09061701461 now to claim",
    "Ok see you at seven, I will bring the bread",
    "How far is it from Denver to Aspen ?",
    "Who was the first woman to fly across the Atlantic ?",
]


def main() -> None:
    """Run the steps; the first failure ends the demo with its exit code."""
    options = demo_parser(__doc__, "demo").parse_args()
    started = time.monotonic()
    work = empty_directory(options.work)
    base = work / "MiniLM"
    base.symlink_to(minilm(), target_is_directory=True)  # a path that the next commands can name
    data = {
        name: write_splits(source, work / "data" / source, limit=limit) for name, (source, limit, _) in TASKS.items()
    }

    title("1  Train: RM-LoRA against plain LoRA, same rank, same steps")
    targets = [part for name in PROJECTIONS for part in ("--target-modules", name)]
    for name, (_, _, settings) in TASKS.items():
        for method in ("rmlora", "lora"):
            run(
                "train", "--base", base, "--train", data[name] / "train.jsonl", "--validation", data[name] / "validation.jsonl",
                "--test", data[name] / "test.jsonl", "--output", work / f"{name}-{method}", "--method", method,
                *targets, *settings,
            )  # fmt: skip
    title("2  Inspect: how many directions do the updates use?")
    for name in TASKS:
        run(
            "inspect",
            work / f"{name}-rmlora",
            "--compare",
            work / f"{name}-lora",
            "--plot",
            work / f"{name}-spectrum.png",
        )
    title("3  Merge: an ordinary checkpoint, streamed")
    run("merge", base, work / "spam-rmlora", "--output", work / "spam-merged")
    title("4  Export: ONNX bundles, verified against PyTorch and PEFT before they are written")
    for name, precision in PRECISIONS.items():
        run(
            "export", base, "--adapter", work / f"{name}-rmlora", "--output", work / f"{name}-bundle", "--precision",
            precision, "--data", data[name] / "test.jsonl",
        )  # fmt: skip
    title("5  Verify: again, from the bundle alone, without PyTorch")
    run("verify", work / "spam-bundle", "--reference-only", "--data", data["spam"] / "test.jsonl")
    title("6  Bench: ONNX Runtime against PyTorch, side by side")
    for name in TASKS:
        run(
            "bench", work / f"{name}-bundle", "--rounds", "2", "--seconds", "0.5", "--threads", "2", "--length", "32",
            "--output", work / f"{name}-bench.json", "--plot", work / f"{name}-bench.png",
        )  # fmt: skip
    title("7  One graph for both adapters, and a third one added: every row of a batch may use its own")
    both = work / "both"
    adapters = [part for name in TASKS for part in ("--adapter", f"{name}={work / f'{name}-rmlora'}")]
    labeled = [part for name in TASKS for part in ("--data", f"{name}={data[name] / 'test.jsonl'}")]
    run("export", base, "--mode", "branches", *adapters, "--output", both, *labeled)
    run("adapter", "add", both, f"trec-plain={work / 'trec-lora'}")
    title("8  Ask them, mixed in one batch")
    run("predict", both, *SENTENCES)
    seconds = time.monotonic() - started
    summary = summarize(work, seconds)
    write_json(work / "summary.json", summary)
    if options.record:
        write_result("demo", {**environment(), **summary})
    print(f"\nDone in {seconds:.0f} s. Adapters, bundles, plots and summary.json are in {work}.")
    if sys.stdin.isatty() and sys.stdout.isatty():
        run("predict", both)


def summarize(work: Path, seconds: float) -> dict[str, Any]:
    """Return the results: accuracy and effective rank of the adapters, evaluation and speed of the bundles."""
    summary: dict[str, Any] = {"seconds": round(seconds)}
    for name in TASKS:
        for method in ("rmlora", "lora"):
            metrics = json.loads((work / f"{name}-{method}" / "rmlora.json").read_text())["metrics"]
            summary[f"{name}-{method}"] = {
                "test_accuracy": metrics["test"]["accuracy"],
                "effective_rank": metrics["effective_rank"],
            }
        manifest = json.loads((work / f"{name}-bundle" / "manifest.json").read_text())
        summary[f"{name}-bundle"] = {
            "precision": manifest["precision"],
            "evaluation": manifest["verification"]["evaluation"],
            "bench": json.loads((work / f"{name}-bench.json").read_text())["rows"],
        }
    report = json.loads((work / "both" / "manifest.json").read_text())["verification"]
    summary["both"] = {key: report[key] for key in ("base", "adapters", "mixed")}
    return summary


if __name__ == "__main__":
    main()
