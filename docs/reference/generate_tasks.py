"""Write docs/tasks.md from the measured tasks; with ``--check`` only say whether it is current.

python docs/reference/generate_tasks.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from generated_page import write_or_check

__all__ = ["main", "render"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "tasks.md"
FORMS = ("merged, fp32", "branches, fp32", "merged, int8", "branches, int8")
DATA = {
    "trec": "TREC-6 questions", "kinds of slots": "sentences to a home", "stsb": "STS Benchmark", "slots": "sentences to a home",
    "questions": "what people ask of a home", "mnist": "handwritten digits", "animals": "photos of animals",
}  # fmt: skip

INTRODUCTION = """\
# Tasks

<!-- Written by  python docs/reference/generate_tasks.py  from benchmarks/results: do not edit. -->

Every task on real data, from training to bundles. Texts are trained on MiniLM-L6, images on DINOv2-small, with few rows and the
defaults, so the figures say that all forms of a model answer alike, not how good a model can get.

## The same metric in every form

The metric on test rows that no adapter was trained on, in PyTorch with PEFT and of each bundle as ONNX Runtime computes it.
*Mixed rows* is how far the outputs are from PyTorch's if the rows of a batch use two adapters in turn, relative to the largest
output (branches, fp32). *Refused* says that `export` found more than one point lost, the limit of int8, and wrote no bundle.
With few test rows chance alone may do that: of the answers to questions, where one changed word costs most, `export` found 1.3
points lost in int8 with branches on 500 rows, and fewer than one on the 2,000 of this table.
"""

BESIDE = """\
## Beside a plain script

What `rmlora-deploy train` reaches beside a script of PEFT and transformers' `Trainer` alone, with the same rows, settings and
seeds. *RM-LoRA* is the default, *LoRA* is `--method lora`. Mean over the seeds of the metric × 100, with the standard deviation;
in brackets the difference from the script, paired by seed.
"""


def render() -> str:
    """Return the whole page."""
    measured = json.loads((RESULTS / "tasks.json").read_text(encoding="utf-8"))
    beside = json.loads((RESULTS / "plain_trainer.json").read_text(encoding="utf-8"))
    return "\n".join([INTRODUCTION, *_forms(measured), "", BESIDE, *_scripts(beside), ""])


def _forms(measured: dict[str, Any]) -> list[str]:
    head = ["task", "`--task`", "data", "rows (train, test)", "metric", "PyTorch", *FORMS, "mixed rows"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in measured["rows"].items():
        bundles = row["bundles"]
        cells = [
            name, f"`{row['task']}`", DATA[row["data"]], f"{row['rows']['train']}, {row['rows']['test']}", row["metric"],
            f"{row['pytorch']:.4f}", *(_figure(bundles[form]) for form in FORMS), f"{bundles['branches, fp32']['mixed_error']:.0e}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    refused = [
        f"{name}, {form}: {bundle['refused'].partition(':')[2].partition(':')[0].strip()}."
        for name, row in measured["rows"].items()
        for form, bundle in row["bundles"].items()
        if "refused" in bundle
    ]
    return [
        *lines,
        "",
        *(line for text in refused for line in (text, "")),
        f"`python -m benchmarks.tasks`, {_versions(measured)}; `--case` measures one row again.",
    ]


def _figure(bundle: dict[str, Any]) -> str:
    return "refused" if "refused" in bundle else f"{bundle['onnx']:.4f}"


def _scripts(beside: dict[str, Any]) -> list[str]:
    names = {"plain PEFT + Trainer": "plain script", "train --method lora": "LoRA", "train": "RM-LoRA"}
    lines = [f"| task | metric | {' | '.join(names.values())} |", "|---|---|---|---|---|"]
    tasks = dict.fromkeys(row["task"] for row in beside["summary"])
    for task in tasks:
        rows = {row["method"]: row for row in beside["summary"] if row["task"] == task}
        lines.append(
            f"| {task} | {next(iter(rows.values()))['metric']} | {' | '.join(_mean(rows[name]) for name in names)} |"
        )
    seeds = len(beside["seeds"])
    rows = beside["rows"]
    return [
        *lines,
        "",
        f"{rows['train']} training, {rows['validation']} validation and {rows['test']} test rows, {seeds} seeds: "
        f"`{beside['environment']['command']}`, {_versions(beside)}.",
    ]


def _mean(row: dict[str, Any]) -> str:
    text = f"{row['mean']:.2f} ± {row['std']:.2f}"
    return f"{text} ({row['minus_plain']['mean']:+.2f})" if "minus_plain" in row else text


def _versions(measured: dict[str, Any]) -> str:
    packages = measured["environment"]["packages"]
    return ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft", "onnxruntime"))


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` return 1 if it is out of date."""
    return write_or_check(PAGE, render(), Path(__file__), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
