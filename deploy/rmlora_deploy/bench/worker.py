"""One contestant in its own process: reads a job from stdin, writes one line of JSON to stdout.

Runs without torch when the engine is ONNX Runtime.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError, ProviderError, RMLoRAError, require
from rmlora.storage import read_json
from rmlora_deploy.bench.machine import OthersWatch, peak_mb, pin, resident_mb
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime.outputs import Arrays

__all__ = ["main", "random_inputs"]

_FEWEST_SAMPLES = 5


@dataclass(frozen=True)
class Bound:
    """A model with one batch already where it computes."""

    run: Callable[[], object]
    """Computes the logits and returns when they are there."""
    logits: Callable[[], npt.NDArray[Any]]
    """Fetches the logits of the last run."""


@dataclass(frozen=True)
class Engine:
    """An opened model: how it runs, in words, and how to give it a batch."""

    how: str
    bind: Callable[[Arrays], Bound]


def main() -> None:
    """Run the job; an error made on purpose becomes ``{"error": …, "kind": …}``, anything else ends the process."""
    job = json.loads(sys.stdin.read())
    try:
        result = _run(job)
    except RMLoRAError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")


def random_inputs(bundle: Bundle, rows: int, tokens: int | None, seed: int) -> Arrays:
    """Return a full batch without padding, of the graph's names and types; the same for every engine.

    Args:
        bundle: its manifest lists the inputs.
        rows: batch size.
        tokens: length of texts; None for images.
        seed: seed of the token ids or pixels.

    Raises:
        ConfigError: the model has no positions for so many tokens.
        InputError: the graph takes something that is neither text nor image, or images of no fixed size.
    """
    config = read_json(bundle.path / "config.json", what="Model configuration")
    positions = config.get("max_position_embeddings")
    if tokens and positions and tokens > positions:
        raise ConfigError(f"The model reads at most {positions} tokens, not {tokens}: lower --length.")
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for item in bundle.manifest.model.inputs:
        name, shape = item.name, (rows, tokens or 1)
        if name == "pixel_values":
            arrays[name] = rng.standard_normal((rows, *_image_shape(item.shape)), dtype=np.float32)
        elif name == "input_ids":
            arrays[name] = rng.integers(0, int(config["vocab_size"]), shape, dtype=np.int64)
        elif name in ("attention_mask", "token_type_ids"):
            arrays[name] = np.full(shape, int(name == "attention_mask"), dtype=np.int64)
        else:
            raise InputError(f"The graph takes '{name}', which bench cannot make up: only text and image inputs.")
    return arrays


def _image_shape(shape: list[int | str]) -> tuple[int, ...]:
    sides = tuple(side for side in shape[1:] if isinstance(side, int))
    if len(sides) != len(shape) - 1:
        raise InputError("The graph takes images of any size: export it with a fixed one to measure it.")
    return sides


def _run(job: Mapping[str, Any]) -> dict[str, Any]:
    pinned = pin(job["cores"]) if job["cores"] else False
    bundle = Bundle.open(job["bundle"], check_files=False)
    batches = [(rows, tokens, random_inputs(bundle, rows, tokens, job["seed"])) for rows, tokens in job["sizes"]]
    started = time.perf_counter()
    if job["engine"] != "onnx":
        engine = _open_torch(bundle, job)
    elif job.get("use") in ("one adapter", "one for each row"):
        engine = _open_branches(bundle, job)
    else:
        engine = _open_onnx(bundle, job)
    loaded = time.perf_counter() - started
    memory = resident_mb()
    sizes, logits = [], None
    for rows, tokens, arrays in batches:
        bound = engine.bind(arrays)
        sizes.append({"rows": rows, "tokens": tokens, **_measure(bound.run, rows, job)})
        if logits is None and job.get("use") in (None, "one adapter"):  # the others are not the model PyTorch runs
            logits = np.asarray(bound.logits(), dtype=np.float64).tolist()
    return {
        "how": engine.how,
        "pinned": pinned,
        "load_seconds": loaded,
        "loaded_mb": memory,
        "peak_mb": peak_mb(),
        "sizes": sizes,
        "logits": logits,
    }


def _measure(call: Callable[[], object], rows: int, job: Mapping[str, Any]) -> dict[str, float | None]:
    """Call for the job's ``seconds``; return percentiles in milliseconds, the rate, and how disturbed it was."""
    for _ in range(job["warmup"]):
        call()
    others = OthersWatch(job["cores"])  # after the warm-up, in which torch.compile's own helpers are at work
    samples: list[float] = []
    end = time.perf_counter() + job["seconds"]
    while len(samples) < _FEWEST_SAMPLES or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    p50, p90, p99 = np.percentile(1e3 * np.array(samples), [50, 90, 99])
    return {
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "rows_per_second": rows * len(samples) / sum(samples),
        "samples": len(samples),
        "others_share": others.share(),
    }


def _open_onnx(bundle: Bundle, job: Mapping[str, Any]) -> Engine:
    """Open the graph; inputs and outputs are bound, on the device where there is one."""
    import onnxruntime as ort

    session = bundle.session(job["provider"], threads=job["threads"])
    device = "cuda" if job["provider"] in ("cuda", "tensorrt") else "cpu"

    def bind(arrays: Arrays) -> Bound:
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, device)

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return Bound(run, lambda: np.asarray(binding.copy_outputs_to_cpu()[0]))

    return Engine(f"{bundle.precision} graph, IOBinding on {device}", bind)


def _open_branches(bundle: Bundle, job: Mapping[str, Any]) -> Engine:
    """Open the graph with its adapters; the time includes finding them and filling the slots."""
    rows = max(rows for rows, _ in job["sizes"])
    session = bundle.adapter_session(job["provider"], threads=job["threads"], rows=rows)
    names = list(bundle.adapters)

    def bind(arrays: Arrays) -> Bound:
        count = len(next(iter(arrays.values())))
        many = job["use"] == "one for each row"
        chosen = [names[row % len(names) if many else 0] for row in range(count)]
        last: list[Any] = []

        def run() -> None:
            last[:] = session.run(arrays, chosen)

        return Bound(run, lambda: np.stack(last))

    return Engine(f"{bundle.precision} graph, AdapterSession, {len(names)} adapters", bind)


def _open_torch(bundle: Bundle, job: Mapping[str, Any]) -> Engine:
    """Open the merged PyTorch model at its best: SDPA, inference mode, TF32 and half precision on a GPU."""
    for module in ("torch", "transformers", "peft"):
        require(module, "export")
    import torch

    from rmlora.base import resolve_base
    from rmlora.torch_models import load_adapted

    device = job["provider"]
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderError("PyTorch finds no CUDA device here.")
    torch.set_num_threads(job["threads"])
    torch.set_num_interop_threads(1)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as ONNX Runtime's own default; the CPU ignores it
    adapted, _ = load_adapted(resolve_base(job["base"]), Path(job["adapter"]), task=bundle.task.name)
    model: Any = adapted.merge_and_unload().eval().to(device)
    attention = model.config._attn_implementation
    if device == "cuda" and bundle.precision == "fp16":
        model = model.half()
    how = f"{str(model.dtype).removeprefix('torch.')}, {attention}, inference mode"
    if job["engine"] == "torch-compile":
        model, how = torch.compile(model, dynamic=False), f"{how}, torch.compile"

    def answered(tensors: Mapping[str, Any]) -> Any:
        return bundle.task.outputs.of_model(model(**tensors), tensors, bundle.pooling)

    def bind(arrays: Arrays) -> Bound:
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        if "pixel_values" in tensors:
            tensors["pixel_values"] = tensors["pixel_values"].to(adapted.dtype)
        last: list[Any] = []

        def run() -> None:
            with torch.inference_mode():
                last[:] = [answered(tensors)]
            if device == "cuda":
                torch.cuda.synchronize()

        return Bound(run, lambda: np.asarray(last[0].float().cpu().numpy()))

    return Engine(how, bind)


if __name__ == "__main__":
    main()
