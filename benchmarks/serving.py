"""A server with 1,000 adapters under load, against the same load on one merged model.

Both servers are ``rmlora-deploy serve``, and the load is ``rmlora-deploy loadtest``: 16 clients in a closed loop, one text
per request, Zipf 1.0 over 1,000 adapters of rank 8 on all 36 projections of MiniLM, an adapter cache of 64. The texts are
messages, questions, tweets and sentences of reviews, 22 tokens on average. The servers run in turn, in new processes;
server and clients share the machine. Every answer is compared with that of the adapter alone, computed beforehand without
a server. Both servers compute two batches at once, one per core, which is the fastest setting for each.

    python -m benchmarks.serving               # writes benchmarks/results/serving.json, about 10 minutes
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import minilm
from benchmarks.random_adapters import draw_arrays, save_random_adapter
from benchmarks.realdata import DATASETS
from benchmarks.results import environment, write_result
from benchmarks.served import load, make_parser, server, settings_of, take_turns
from rmlora.storage import sha256_file, write_json
from rmlora_converters.graph.files.onnx_adapter import write_onnx_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.prediction import to_prediction

WORKERS = 2
LABELS, RANK, LENGTH = ("no", "yes"), 8, 128
TEXTS_OF_EACH = 6
TOLERANCE = 1e-4
"""Largest error of a probability; a batch adds float32 numbers in another order."""


def main() -> None:
    """Make the bundles, load both servers in turn, print and write the figures; exit with 1 for a wrong answer or an error."""
    options = make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        make_bundles(work, options.adapters)
        runs = take_turns(
            ("merged", "branches"),
            options.rounds,
            lambda name: run(work, name, options),
            lambda run: f"{run['requests_per_second']:7.1f}/s  p99 {run['latency_ms']['p99']:6.1f} ms",
        )
    pairs = list(zip(runs["branches"], runs["merged"], strict=True))
    result = {
        "environment": environment(),
        "settings": settings_of(options),
        "throughput_ratio": statistics.median(
            ours["requests_per_second"] / merged["requests_per_second"] for ours, merged in pairs
        ),
        "p99_ratio": statistics.median(
            ours["latency_ms"]["p99"] / merged["latency_ms"]["p99"] for ours, merged in pairs
        ),
        "errors": sum(sum(run["errors"].values()) for run in runs["branches"]),
        "wrong": sum(run["wrong"] for run in runs["branches"]),
        "runs": runs,
    }
    print(json.dumps({key: result[key] for key in ("throughput_ratio", "p99_ratio", "errors", "wrong")}))
    print(write_result("serving", result))
    sys.exit(1 if result["errors"] or result["wrong"] else 0)


def make_bundles(work: Path, adapters: int) -> None:
    """Export a merged bundle and one with branches and random adapters, and write the expected answers of both."""
    if not (work / "merged").is_dir():
        save_random_adapter(minilm(), "text-classification", work / "a0", rank=RANK, labels=LABELS, seed=0, size=0.02)
        _run("export", minilm(), "--adapter", work / "a0", "--output", work / "merged", "--no-verify")
        flags = ("--mode", "branches", "--adapter", f"a0={work / 'a0'}", "--output", work / "branches", "--no-verify")
        _run("export", minilm(), *flags)
    bundle = Bundle.open(work / "branches", check_files=False)
    lora_inputs, entry = bundle.lora_inputs(), bundle.adapters["a0"]
    entries = {}
    for number in range(adapters):
        name = f"a{number}"
        file = f"adapters/{name}.onnx_adapter"
        if number and not (bundle.path / file).is_file():
            rng = np.random.default_rng(number)
            arrays = draw_arrays(lora_inputs, rng, rank=RANK, labels=len(LABELS), size=0.02)
            write_onnx_adapter(bundle.path / file, arrays)
        digest = sha256_file(bundle.path / file)
        changes = {"file": file, "files": {file: digest}, "sha256": digest, "max_length": LENGTH}
        entries[name] = entry.model_copy(update=changes)
    bundle.manifest.adapters = entries
    bundle.save_manifest()
    session = bundle.adapter_session()
    texts = real_texts()
    inputs = bundle.preprocessor("a0")(texts)
    write_reference(work / "branches.json", texts, {name: session.run(inputs, name) for name in entries}, bundle)
    merged = Bundle.open(work / "merged", check_files=False)
    answers = merged.session().run(None, merged.preprocessor()(texts))[0]
    write_reference(work / "merged.json", texts, {"merged": list(answers)}, merged)


def real_texts() -> list[str]:
    """Return texts of every length that people write, the same number from each dataset."""
    draw = random.Random(0)
    names = ("sms", "trec", "tweets", "movies")
    return [example.input for name in names for example in draw.sample(DATASETS[name](), TEXTS_OF_EACH)]


def write_reference(path: Path, texts: list[str], logits: dict[str, list[np.ndarray]], bundle: Bundle) -> None:
    """Write the expected answers in the format of ``loadtest --reference``."""
    answers = {}
    for name, rows in logits.items():
        predictions = [dict(to_prediction(row, LABELS, bundle, None).ranking) for row in rows]
        answers[name] = [[shares[label] for label in LABELS] for shares in predictions]
    write_json(path, {"texts": texts, "answers": answers, "tolerance": TOLERANCE})


def run(work: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start a server, put it under load and return the figures of the load test and of the server."""
    with server(
        work / name,
        "--max-active-adapters",
        str(options.max_active_adapters),
        "--workers",
        str(WORKERS),
        "--threads",
        "1",
    ) as url:
        figures = load(url, work / f"{name}.json", options)
        metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()  # noqa: S310 - our own server
    events = dict(re.findall(r'rmlora_adapter_cache_total\{bundle="\w+",event="(\w+)"\} ([\d.e+]+)', metrics))
    return {**figures, "bank": {event: float(count) for event, count in events.items()}}


def _run(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "rmlora_deploy", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
