"""The workflow with a language model on real data, offline: what ``make demo-llm`` runs.

SmolLM2-135M learns to answer sentences to a home with a command in JSON, from templates of Home Assistant. The adapter is
exported into a graph with branches and merged, each compared with PyTorch by the answers to sentences of templates that it
has not seen; then the base and the adapter are asked the same.

    python -m benchmarks.demo_llm [--work build/demo-llm] [--record]
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.assets import smollm2_gguf
from benchmarks.demo_steps import run, title
from benchmarks.realdata import write_splits
from benchmarks.results import environment, write_result
from rmlora.storage import write_json

EXAMPLES = 1200
"""Sentences to learn from."""
ANSWER = ["--metric", "exact_match", "--max-new-tokens", "48"]
"""How answers are judged; the longest right one has 41 tokens."""
BUNDLES = {"home": ("branches", "int8"), "home-merged": ("merged", "fp32")}
"""Bundle → mode and precision."""
SYSTEM = "Answer with the command as JSON."
"""The system message of every chat in the data."""


def main() -> None:
    """Run the steps; the first failure ends the demo with its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo-llm"), help="directory to work in (default %(default)s)"
    )
    parser.add_argument(
        "--record", action="store_true", help="write the figures to benchmarks/results/demo_llm.json too"
    )
    options = parser.parse_args()
    work: Path = options.work
    started = time.monotonic()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    base = work / "SmolLM2-135M-Instruct.gguf"
    base.symlink_to(smollm2_gguf())  # a path that the next commands can name
    data = write_splits("home", work / "data", limit=EXAMPLES)
    test = data / "test.jsonl"

    title("1  Train: from sentences to JSON, the loss on the answers alone")
    run(
        "train", "--task", "text-generation", "--base", base, "--train", data / "train.jsonl", "--validation",
        data / "validation.jsonl", "--batch-size", "8", "--epochs", "3", "--precision", "bf16", "--output", work / "intents",
    )  # fmt: skip
    title("2  Inspect: how many directions do the updates use?")
    run("inspect", work / "intents", "--plot", work / "spectrum.png")
    title("3  Export: verified against PyTorch, and by its answers to sentences that were held out")
    for name, (mode, precision) in BUNDLES.items():
        run(
            "export", base, "--mode", mode, "--adapter", f"intents={work / 'intents'}", "--output", work / name, "--precision",
            precision, "--data", f"intents={test}", *ANSWER,
        )  # fmt: skip
    title("4  Ask the base, then the adapter, in one bundle")
    for adapter in ([], ["--adapter", "intents"]):
        for sentence in ("turn on the lights in the kitchen", "set a timer for 5 minutes"):
            run("generate", work / "home", sentence, "--system", SYSTEM, "--max-new-tokens", "48", *adapter)
    seconds = time.monotonic() - started
    summary = summarize(work, seconds)
    write_json(work / "summary.json", summary)
    if options.record:
        write_result("demo_llm", {**environment(), **summary})
    print(f"\nDone in {seconds:.0f} s. Adapter, bundles, plot and summary.json are in {work}.")


def summarize(work: Path, seconds: float) -> dict[str, Any]:
    """Return the results: the loss after training, and how many answers are right in every bundle."""
    metrics = json.loads((work / "intents" / "rmlora.json").read_text())["metrics"]
    summary: dict[str, Any] = {
        "seconds": round(seconds),
        "training": {"validation": metrics["validation"], "effective_rank": metrics["effective_rank"]},
    }
    for name, (mode, precision) in BUNDLES.items():
        report = json.loads((work / name / "manifest.json").read_text())["verification"]
        row = report["adapters"]["intents"] if mode == "branches" else report
        summary[name] = {
            "mode": mode,
            "precision": precision,
            **{key: row[key] for key in ("evaluation", "perplexity")},
        }
    return summary


if __name__ == "__main__":
    main()
