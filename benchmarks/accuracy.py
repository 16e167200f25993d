"""Accuracy of RM-LoRA as published and of plain LoRA on MiniLM, in PyTorch and after export.

The data are deduplicated and split by seed. Each model is trained by ``rmlora-deploy train`` and exported by
``rmlora-deploy export``, which evaluates PyTorch and ONNX Runtime on the same test examples.

    python -m benchmarks.accuracy            # writes benchmarks/results/accuracy.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.assets import minilm
from benchmarks.demo import PROJECTIONS
from benchmarks.realdata import write_splits
from benchmarks.results import environment, write_result

SETTINGS = {
    "sms": ["--epochs", "2", "--max-length", "48"],
    "trec": ["--epochs", "3", "--max-length", "32", "--group-by-length"],
}


def main() -> None:
    """Train, export and evaluate; print a line per result and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of split, head and masks (default %(default)s)")
    seeds = range(parser.parse_args().seeds)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in SETTINGS:
            for seed in seeds:
                data = write_splits(name, Path(directory) / f"{name}-{seed}", seed=seed)
                for method in ("rmlora", "lora"):
                    rows.append(_measure(name, method, seed, data, Path(directory) / f"{name}-{method}-{seed}"))
                    print(json.dumps(rows[-1]), flush=True)
    print(write_result("accuracy", {"environment": environment(), "settings": SETTINGS, "rows": rows}))


def _measure(name: str, method: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    base, adapter = str(minilm()), work / "adapter"
    targets = [part for module in PROJECTIONS for part in ("--target-modules", module)]
    files = [part for split in ("train", "validation", "test") for part in (f"--{split}", str(data / f"{split}.jsonl"))]
    trained = _command(
        "train", "--base", base, *files, "--output", str(adapter), "--method", method, "--seed", str(seed),
        "--mask-seed", str(seed), *(["--preset", "paper"] if method == "rmlora" else []), *targets, *SETTINGS[name],
    )  # fmt: skip
    row = {
        "data": name,
        "method": method,
        "seed": seed,
        "train_seconds": round(trained["seconds"], 1),
        "pytorch": trained["metrics"]["test"]["accuracy"],
        "effective_rank": json.loads((adapter / "rmlora.json").read_text())["metrics"]["effective_rank"],
    }
    for precision in ("fp32", "int8"):
        exported = _command(
            "export", base, "--adapter", str(adapter), "--output", str(work / precision), "--precision", precision,
            "--data", str(data / "test.jsonl"),
        )  # fmt: skip
        verification = exported["verification"]
        row[f"onnx_{precision}"] = verification["evaluation"]["onnx"]
        row[f"max_error_{precision}"] = verification["onnx"]["max_abs_error"]
    return row


def _command(*words: str) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "rmlora_deploy", *words, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


if __name__ == "__main__":
    main()
