"""Tables: servers of embeddings and of classification over HTTP under 16 clients in a closed loop, ours beside infinity.

Every server has the same merged checkpoint, and the same texts, written by people. Each runs in turn in a new process, with
its clients, on the same two cores. Afterwards its answers are compared with PyTorch's.

    python -m benchmarks.server_speed           # writes server_embeddings.json and server_classification.json, 12 minutes
    python -m benchmarks.server_speed --quick   # only embeddings, in build/speed-quick
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import minilm
from benchmarks.contest import (  # fmt: skip
    Contestant,
    ContestantError,
    Table,
    make_parser,
    measure,
    run_worker,
    save_table,
    settle,
    worker,
)
from benchmarks.peers import missing, python_of
from benchmarks.random_adapters import save_random_adapter
from benchmarks.serving import real_texts
from benchmarks.speed_models import SpeedModels, command

CLIENTS, CHECKED = 16, 8
OURS = "ours, fp32"
NO_TEI = "text-embeddings-inference is not on the package index: it is built with Rust or runs from its container image"


def main() -> None:
    """Make the models and measure both tables."""
    options = settle(make_parser(__doc__, rounds=3, seconds=15.0).parse_args())
    if options.quick:
        options.seconds = 3.0
    for name, title, prepare in TABLES[:1] if options.quick else TABLES:
        columns = ["requests/s", "p50 ms", "p99 ms"]
        note = f"{CLIENTS} clients, one text in a request, {options.seconds:.0f} s in a round."
        table = Table(name, title, "requests/s and ms", OURS, columns, "higher", note, columns[:1])
        contestants = list(prepare(options.work, options.seconds))
        save_table(table, measure(contestants, options, table), options)


def embedding_models(work: Path, seconds: float) -> Iterator[Contestant]:
    """Yield the servers of a sentence encoder with a merged adapter."""
    adapter, checkpoint = work / "embed-adapter", work / "embed-checkpoint"
    if not checkpoint.is_dir():
        shutil.rmtree(adapter, ignore_errors=True)
        save_random_adapter(minilm(), "feature-extraction", adapter, rank=8, seed=0, size=0.02)
        command("merge", minilm(), adapter, "--output", checkpoint)
    bundles = {precision: work / f"embed-{precision}" for precision in ("fp32", "int8")}
    for precision, path in bundles.items():
        if not path.is_dir():
            command("export", minilm(), "--adapter", adapter, "--output", path, "--precision", precision)
    answers = reference_vectors(checkpoint, real_texts()[:CHECKED])
    yield from _servers(work, checkpoint, bundles, "feature-extraction", answers, seconds)


def classification_models(work: Path, seconds: float) -> Iterator[Contestant]:
    """Yield the servers of the classifier that ``benchmarks.encoder_speed`` measures."""
    models = SpeedModels(work)
    bundles = {precision: models.bundle(precision) for precision in ("fp32", "int8")}
    checkpoint = models.checkpoint()
    answers = reference_probabilities(checkpoint, real_texts()[:CHECKED])
    yield from _servers(work, checkpoint, bundles, "text-classification", answers, seconds)


def _servers(
    work: Path, checkpoint: Path, bundles: dict[str, Path], task: str, answers: Sequence[Any], seconds: float
) -> Iterator[Contestant]:
    path = {"feature-extraction": "/v1/embeddings", "text-classification": "/classify"}[task]
    job = {"texts": real_texts(), "answers": answers, "clients": CLIENTS, "seconds": seconds}
    for precision, bundle in bundles.items():
        words = [
            "python",
            "-m",
            "rmlora_deploy",
            "serve",
            str(bundle),
            "--port",
            "{port}",
            "--workers",
            "2",
            "--threads",
            "1",
        ]
        ours = {**job, "server": _our_python(words), "ready": "/readyz", "path": path, "model": bundle.name}
        yield Contestant(f"ours, {precision}", worker("http_load"), ours, "ours", precision)
    reason = missing("infinity")
    for name, engine, kind, group in (
        ("infinity, Optimum engine", "optimum", "plain", "fp32"), ("infinity, torch engine", "torch", "", "fp32"),
        ("infinity, Optimum engine, int8", "optimum", "int8", "int8"),
    ):  # fmt: skip
        model, why = (checkpoint, None) if not kind or reason else _optimum_model(work, checkpoint, task, kind)
        theirs = {**job, **_infinity(model, engine), "path": path.removeprefix("/v1"), "model": "model"}
        yield Contestant(name, worker("http_load"), theirs, "peer", group, reason or why)
    yield Contestant("text-embeddings-inference", kind="peer", group="fp32", missing=NO_TEI)


def _our_python(words: Sequence[str]) -> list[str]:
    import sys

    return [sys.executable, *words[1:]]


def _infinity(model: Path, engine: str) -> dict[str, Any]:
    """Return the part of a job that starts infinity, without its telemetry."""
    words = [
        str(python_of("infinity").parent / "infinity_emb"), "v2", "--model-id", str(model), "--served-model-name", "model",
        "--engine", engine, "--device", "cpu", "--port", "{port}", "--host", "127.0.0.1", "--no-model-warmup",
        "--batch-size", "32",
    ]  # fmt: skip
    environment = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    return {"server": words, "environment": environment, "ready": "/health"}


def _optimum_model(work: Path, checkpoint: Path, task: str, kind: str) -> tuple[Path, str | None]:
    """Return a directory with Optimum's export as infinity wants it, and why there is none.

    The Optimum in infinity's own environment runs such graphs, but cannot export with this torch.
    """
    path = work / f"infinity-{task}-{kind}"
    if path.is_dir() or missing("optimum"):
        return path, missing("optimum")
    job = {"checkpoint": str(checkpoint), "output": str(path), "task": task, "kind": kind}
    try:
        run_worker(Contestant(path.name, worker("export_infinity", python=python_of("optimum")), job))
    except ContestantError as error:
        shutil.rmtree(path, ignore_errors=True)
        return path, f"Optimum could not export it: {error}"
    return path, None


def reference_vectors(checkpoint: Path, texts: Sequence[str]) -> list[list[float]]:
    """Return PyTorch's sentence vectors: the mean over the tokens, normalized."""

    def pool(model: Any, encoded: Any) -> Any:
        states = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1)
        vectors = (states * mask).sum(1) / mask.sum(1)
        return vectors / vectors.norm(dim=1, keepdim=True)

    return _reference("AutoModel", checkpoint, texts, pool)


def reference_probabilities(checkpoint: Path, texts: Sequence[str]) -> list[list[float]]:
    """Return PyTorch's probabilities in the order of the labels."""
    return _reference(
        "AutoModelForSequenceClassification",
        checkpoint,
        texts,
        lambda model, encoded: model(**encoded).logits.softmax(-1),
    )


def _reference(
    kind: str, checkpoint: Path, texts: Sequence[str], answer: Callable[[Any, Any], Any]
) -> list[list[float]]:
    import torch
    import transformers

    model = getattr(transformers, kind).from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    with torch.inference_mode():
        rows = [answer(model, tokenizer([text], return_tensors="pt"))[0].numpy() for text in texts]
    return [[float(value) for value in row] for row in np.array(rows)]


TABLES = (
    ("server_embeddings", "Embeddings over HTTP", embedding_models),
    ("server_classification", "Classification over HTTP", classification_models),
)

if __name__ == "__main__":
    main()
