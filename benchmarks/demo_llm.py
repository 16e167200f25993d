"""The workflow with a language model on real data, offline: what ``make demo-llm`` runs.

SmolLM2-135M learns to answer sentences to a home with a command in JSON, from templates of Home Assistant. The adapter is
exported into a graph with branches and merged, each compared with PyTorch by the answers to sentences of templates that it
has not seen; then the base and the adapter are asked the same.

    python -m benchmarks.demo_llm [--work build/demo-llm] [--record] [--all-forms]
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.assets import smollm2_gguf
from benchmarks.demo_steps import demo_parser, empty_directory, run, title
from benchmarks.realdata import write_splits
from benchmarks.results import environment, write_result
from rmlora.storage import write_json

EXAMPLES = 1200
"""Sentences to learn from."""
ANSWER = ["--metric", "exact_match", "--max-new-tokens", "48"]
"""How answers are judged; the longest right one has 41 tokens."""
BUNDLES = {"home": ("branches", "int8"), "home-merged": ("merged", "fp32")}
"""Bundle → mode and precision."""
OTHER_FORMS = {
    "home-fp32": ("branches", "fp32"),
    "home-merged-int8": ("merged", "int8"),
    "home-merged-int4": ("merged", "int4"),
    "home-merged-int4-rounded": ("merged", "int4"),
}
"""Bundles that ``--all-forms`` adds, for the table of docs/decoders.md."""
ROUNDED = "home-merged-int4-rounded"
"""Bundle whose weights are rounded by the training data."""
SYSTEM = "Answer with the command as JSON."
"""The system message of every chat in the data."""


def main() -> None:
    """Run the steps; the first failure ends the demo with its exit code."""
    parser = demo_parser(__doc__, "demo-llm")
    parser.add_argument(
        "--all-forms", action="store_true", help="export the other forms in docs/decoders.md too (20 minutes more)"
    )
    options = parser.parse_args()
    bundles = {**BUNDLES, **(OTHER_FORMS if options.all_forms else {})}
    started = time.monotonic()
    work = empty_directory(options.work)
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
    for name, (mode, precision) in bundles.items():
        rounding = ["--calibration", data / "train.jsonl"] if name == ROUNDED else []
        run(
            "export", base, "--mode", mode, "--adapter", f"intents={work / 'intents'}", "--output", work / name, "--precision",
            precision, *rounding, "--data", f"intents={test}", *ANSWER,
        )  # fmt: skip
    title("4  Ask the base, then the adapter, in one bundle")
    for adapter in ([], ["--adapter", "intents"]):
        for sentence in ("turn on the lights in the kitchen", "set a timer for 5 minutes"):
            run("generate", work / "home", sentence, "--system", SYSTEM, "--max-new-tokens", "48", *adapter)
    seconds = time.monotonic() - started
    summary = summarize(work, bundles, seconds)
    write_json(work / "summary.json", summary)
    if options.record:
        write_result("demo_llm", {**environment(), **summary})
    print(f"\nDone in {seconds:.0f} s. Adapter, bundles, plot and summary.json are in {work}.")


def summarize(work: Path, bundles: Mapping[str, tuple[str, str]], seconds: float) -> dict[str, Any]:
    """Return the results: the loss after training, and how many answers are right in every bundle."""
    metrics = json.loads((work / "intents" / "rmlora.json").read_text())["metrics"]
    summary: dict[str, Any] = {
        "seconds": round(seconds),
        "training": {"validation": metrics["validation"], "effective_rank": metrics["effective_rank"]},
    }
    for name, (mode, precision) in bundles.items():
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
