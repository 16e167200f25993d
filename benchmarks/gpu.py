"""What a GPU changes: differences from PyTorch on the CPU, time of a batch, and requests served, on one NVIDIA GPU.

MiniLM with 8 random adapters of rank 8 on all 36 projections, in fp32 and fp16, merged and with branches; DINOv2-small with
random weights. Every bundle is verified on the CUDA provider against PyTorch in float32 on the CPU, fp32 also with TF32, which
the toolkit leaves off. Times are from host memory to host memory, in one process in alternating order
(``benchmarks.gpu_speed`` lists the contestants).

    python -m benchmarks.gpu              # needs onnxruntime-gpu and a GPU; writes benchmarks/results/gpu.json, 4 minutes
    python -m benchmarks.gpu --parts speed,serving      # only these; the file keeps the others
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.assets import minilm
from benchmarks.branches import ADAPTERS, LABELS, RANK
from benchmarks.random_adapters import save_random_adapter
from benchmarks.results import RESULTS, environment, write_result
from rmlora_deploy.api import verify
from rmlora_deploy.runtime import providers

NAMES = [f"a{number}" for number in range(ADAPTERS)]
PRECISIONS = ("fp32", "fp16", "int8")
PARTS = ("parity", "speed", "serving", "training")
CLIENTS, ROWS = 16, 8


def main() -> None:
    """Make the bundles, measure the parts, and put each into the file once it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="cuda", help="execution provider (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="time on each batch shape in a turn")
    parser.add_argument("--serve-seconds", type=float, default=8.0, help="length of one load test")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--work", type=Path, help="keep bundles and adapters here (default: a temporary directory)")
    options = parser.parse_args()
    measures: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
        "parity": parity, "speed": speed, "serving": serving, "training": training,
    }  # fmt: skip
    about = {
        "environment": {**environment(), "cuda": _cuda_versions()},
        "settings": {
            "provider": options.provider, "rounds": options.rounds, "seconds": options.seconds, "rank": RANK,
            "adapters": ADAPTERS, "weights": _weights(), "seed": 0,
        },
    }  # fmt: skip
    known = RESULTS / "gpu.json"
    result: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        for name, outcome in make_bundles(work).items():
            print(name, outcome if isinstance(outcome, str) else f"exported in {outcome:.0f} s", flush=True)
        for part in options.parts.split(","):
            print(f"-- {part}", flush=True)
            started = time.monotonic()
            result[part] = {**about, "rows": measures[part](work, options)}
            print(json.dumps(result[part]["rows"]), f"({time.monotonic() - started:.0f} s)", flush=True)
            print(write_result("gpu", result))


def make_bundles(work: Path) -> dict[str, float | str]:
    """Export every bundle in a process of its own, several at a time; return bundle → seconds, or the error."""
    work.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(NAMES):
        if not (work / name).is_dir():
            save_random_adapter(
                minilm(), "text-classification", work / name, rank=RANK, labels=LABELS, seed=seed, size=0.02
            )
    vision = _random_dinov2(work / "dinov2")
    if not (work / "image-adapter").is_dir():
        save_random_adapter(
            vision, "image-classification", work / "image-adapter", rank=RANK, labels=LABELS, seed=0, size=0.02
        )
    flags = [part for name in NAMES for part in ("--adapter", f"{name}={work / name}")]
    jobs: dict[str, list[str | Path]] = {}
    for precision in PRECISIONS:
        jobs[f"merged-{precision}"] = [minilm(), "--adapter", work / "a0", "--precision", precision]
        jobs[f"branches-{precision}"] = [minilm(), "--mode", "branches", *flags, "--precision", precision]
        jobs[f"images-{precision}"] = [vision, "--adapter", work / "image-adapter", "--precision", precision]
    wanted = {name: job for name, job in jobs.items() if not (work / name).is_dir()}
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        return dict(zip(wanted, pool.map(lambda name: _export(work / name, wanted[name]), wanted), strict=True))


def parity(work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Verify each bundle on the provider; one row for each kind of comparison in its report."""
    rows = []
    for precision in PRECISIONS:
        for name in (f"merged-{precision}", f"images-{precision}", f"branches-{precision}"):
            if not (work / name).is_dir():
                continue
            rows += _verified(work / name, options.provider, tf32=False)
            if precision == "fp32":
                with tf32():
                    rows += _verified(work / name, options.provider, tf32=True)
    return rows


def _verified(bundle: Path, provider: str, *, tf32: bool) -> Iterator[dict[str, Any]]:
    report = verify(bundle, provider=provider, record=False, check=False)
    parts: dict[str, Any] = (
        {"merged": report.onnx} if report.onnx is not None else {"base": report.base, "mixed": report.mixed}
    )
    if report.adapters:
        worst = max(report.adapters.values(), key=lambda row: row.onnx.max_relative_error)
        parts["adapter, the worst"] = worst.onnx
    for kind, row in parts.items():
        if row is not None:
            yield {
                "bundle": bundle.name, "tf32": tf32, "compared": kind, "rows": row.rows, "passed": report.passed,
                "max_relative_error": row.max_relative_error, "rms_relative_error": row.rms_relative_error,
                "argmax_agreement": row.argmax_agreement,
            }  # fmt: skip


@contextmanager
def tf32() -> Iterator[None]:
    """Let the CUDA provider multiply float32 matrices in TF32 until the block ends."""
    kept = providers.PROVIDERS
    providers.PROVIDERS = tuple(
        replace(item, options={**item.options, "use_tf32": 1}) if item.name == "cuda" else item for item in kept
    )
    try:
        yield
    finally:
        providers.PROVIDERS = kept


def speed(work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each contestant and batch shape (see ``benchmarks.gpu_speed``)."""
    from benchmarks.gpu_speed import measure

    return measure(work, options.provider, rounds=options.rounds, seconds=options.seconds, compiled=options.compile)


def serving(work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Load-test a server of the 8 adapters, each request with :data:`ROWS` texts, on the provider and on the CPU."""
    from benchmarks.served import server

    rows = []
    for bundle, provider in (
        ("branches-fp32", options.provider),
        ("branches-fp16", options.provider),
        ("branches-fp32", "cpu"),
    ):
        with server(work / bundle, "--provider", provider, "--max-batch", "64") as url:
            done = subprocess.run(
                [
                    sys.executable, "-m", "rmlora_deploy", "loadtest", url, "--json", "--seconds", str(options.serve_seconds),
                    "--clients", str(CLIENTS), "--rows", str(ROWS), *(part for name in NAMES for part in ("--model", name)),
                ],
                stdout=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        rows.append(
            {"bundle": bundle, "provider": provider, "clients": CLIENTS, "rows": ROWS, **json.loads(done.stdout)}
        )
    return rows


def training(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train the same few steps on the GPU in each precision and on the CPU; export each adapter and verify it on the provider."""
    data = work / "data.jsonl"
    lines = [{"text": f"{word} {number} {word}", "label": word} for number in range(256) for word in ("spam", "ham")]
    data.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    runs = {"gpu, fp32": "fp32", "gpu, bf16": "bf16", "gpu, fp16": "fp16", "cpu, fp32": "fp32"}

    def train(name: str) -> Path:
        path = work / f"trained {name}"
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if name.startswith("cpu") else {}
        _command(
            "train", "--base", minilm(), "--train", data, "--validation", data, "--output", path / "adapter",
            "--epochs", "1", "--max-length", "32", "--precision", runs[name], "--overwrite", "--target-modules", "query",
            "--target-modules", "value", OMP_NUM_THREADS="4", **hidden,
        )  # fmt: skip
        _command(
            "export",
            minilm(),
            "--adapter",
            path / "adapter",
            "--output",
            path / "bundle",
            "--overwrite",
            OMP_NUM_THREADS="4",
        )
        return path

    with ThreadPoolExecutor(len(runs)) as pool:
        paths = dict(zip(runs, pool.map(train, runs), strict=True))
    found = {}
    for name, path in paths.items():
        metadata = json.loads((path / "adapter" / "rmlora.json").read_text(encoding="utf-8"))
        report = verify(path / "bundle", provider=options.provider, data=str(data), record=False, check=False)
        assert report.onnx is not None and report.evaluation is not None
        found[name] = {
            "metrics": metadata.get("metrics"), "passed": report.passed,
            "max_relative_error": report.onnx.max_relative_error, "metric_on_provider": report.evaluation.onnx,
            "metric_of_pytorch": report.evaluation.pytorch,
        }  # fmt: skip
    return found


def _export(target: Path, words: list[str | Path]) -> float | str:
    try:
        return round(_command("export", *words, "--output", target, OMP_NUM_THREADS="4"), 1)
    except RuntimeError as error:
        return str(error)


def _command(*words: str | Path, **variables: str) -> float:
    """Run the command line in a new process and return the seconds it took."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "rmlora_deploy", *map(str, words)],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    return time.monotonic() - start


def _random_dinov2(target: Path) -> Path:
    """Save a DINOv2-small with random weights; its time and rounding are those of the real one, its answers are not."""
    if not target.is_dir():
        import torch
        from transformers import Dinov2Config, Dinov2Model

        from benchmarks.assets import _DINOV2_CONFIG, _PREPROCESSOR
        from rmlora.storage import write_json

        torch.manual_seed(0)
        model = Dinov2Model(
            Dinov2Config(**{key: value for key, value in _DINOV2_CONFIG.items() if key != "torch_dtype"})
        )
        model.save_pretrained(str(target))
        write_json(target / "preprocessor_config.json", _PREPROCESSOR)
    return target


def _weights() -> str:
    """Say whether MiniLM's weights are the published ones or were rounded to bfloat16 for a machine that is hard to reach."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(next(minilm().glob("*.safetensors")))
    rounded = all(
        torch.equal(item, item.bfloat16().to(item.dtype)) for item in tensors.values() if item.is_floating_point()
    )
    return "MiniLM-L6, rounded to bfloat16; DINOv2-small, random" if rounded else "MiniLM-L6; DINOv2-small, random"


def _cuda_versions() -> dict[str, Any]:
    import torch

    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        "runtime": torch.version.cuda,
        "cudnn": cudnn,
        "capability": torch.cuda.get_device_capability() if cudnn else None,
    }


if __name__ == "__main__":
    main()
