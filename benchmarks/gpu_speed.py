"""The contestants of ``benchmarks.gpu``: ONNX Runtime, AdapterSession, PyTorch and PEFT on one GPU, in one process.

A call takes token ids in host memory and ends with the logits in host memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import minilm
from benchmarks.branches import ADAPTERS, LABELS, Inputs, _answer_without_adapter, random_inputs
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["measure"]

SIZES = ((1, 32), (8, 32), (32, 128))
WARMUP, FEWEST = 5, 10
NAMES = [f"a{number}" for number in range(ADAPTERS)]

Call = Callable[[Inputs], object]


def measure(work: Path, provider: str, *, rounds: int, seconds: float, compiled: bool) -> list[dict[str, Any]]:
    """Return a row for each contestant and batch shape; a ratio is to PyTorch in the same precision and the same round."""
    contestants = _contestants(work, provider, compiled=compiled)
    opened: dict[str, Call] = {}
    failed: dict[str, str] = {}
    for name, (make, _) in contestants.items():
        try:
            opened[name] = make()
        except Exception as error:  # noqa: BLE001 - what the others measure is kept
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
    rows: list[dict[str, Any]] = [{"name": name, "not_measured": reason} for name, reason in failed.items()]
    for batch, tokens in SIZES:
        inputs = random_inputs(batch, tokens)
        medians: dict[str, list[float]] = {name: [] for name in opened}
        for name in opened:
            for _ in range(WARMUP):
                opened[name](inputs)
        for number in range(rounds):
            for name in opened if number % 2 == 0 else reversed(opened):
                medians[name].append(_median_ms(partial(opened[name], inputs), seconds))
        rows += [_row(name, contestants[name][1], batch, tokens, medians) for name in opened]
    return rows


def _row(name: str, rival: str, batch: int, tokens: int, medians: dict[str, list[float]]) -> dict[str, Any]:
    ours = medians[name]
    ratios = [theirs / mine for theirs, mine in zip(medians.get(rival, []), ours, strict=False)]
    ratio = {"pytorch_over_this": statistics.median(ratios), "range": [min(ratios), max(ratios)]} if ratios else {}
    return {"name": name, "batch": batch, "tokens": tokens, "ms": statistics.median(ours), "ms_rounds": ours, **ratio}


def _median_ms(call: Callable[[], object], seconds: float) -> float:
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < FEWEST or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(1e3 * (time.perf_counter() - start))
    return statistics.median(samples)


def _contestants(work: Path, provider: str, *, compiled: bool) -> dict[str, tuple[Callable[[], Call], str]]:
    """Return name → how to open it, and the PyTorch contestant to compare it with."""
    found: dict[str, tuple[Callable[[], Call], str]] = {}
    for precision in ("fp32", "fp16"):
        torch_name = f"PyTorch merged, {precision}"
        rows = partial(_branches, work / f"branches-{precision}", provider)
        found |= {
            f"merged, {precision}": (partial(_merged, work / f"merged-{precision}", provider), torch_name),
            f"no adapter, {precision}": (partial(rows, "none"), torch_name),
            f"one adapter, {precision}": (partial(rows, "one"), torch_name),
            f"one adapter, graph of its own, {precision}": (partial(rows, "one", specialized=True), torch_name),
            f"one for each row, {precision}": (partial(rows, "mixed"), torch_name),
            f"each row at random, {precision}": (partial(rows, "changing"), torch_name),
            torch_name: (partial(_torch, work, precision), ""),
        }
        if compiled:
            found[f"PyTorch compiled, {precision}"] = (partial(_torch, work, precision, compiled=True), "")
    found |= {
        "merged, fp32 with TF32": (
            partial(_merged_tf32, work / "merged-fp32", provider),
            "PyTorch merged, fp32 with TF32",
        ),
        "PyTorch merged, fp32 with TF32": (partial(_torch, work, "tf32"), ""),
        "merged, int8": (partial(_merged, work / "merged-int8", provider), "PyTorch merged, fp32"),
        "PEFT, one for each row, fp32": (partial(_peft, work), ""),
        "loading an adapter, fp32": (partial(_loading, work / "branches-fp32", provider), ""),
    }
    return found


def _merged(bundle: Path, provider: str) -> Call:
    session = Bundle.open(bundle, check_files=False).session(provider)
    return lambda inputs: session.run(None, inputs)


def _merged_tf32(bundle: Path, provider: str) -> Call:
    from benchmarks.gpu import tf32

    with tf32():
        return _merged(bundle, provider)


def _branches(path: Path, provider: str, use: str, *, specialized: bool = False) -> Call:
    session = Bundle.open(path, check_files=False).adapter_session(provider, rows=SIZES[-1][0])
    rng = np.random.default_rng(0)
    if use == "none":
        _answer_without_adapter(session)
    if specialized:
        session.specialize(NAMES[0])

    def run(inputs: Inputs) -> object:
        rows = len(inputs["input_ids"])
        if use == "mixed":
            return session.run(inputs, [NAMES[row % ADAPTERS] for row in range(rows)])
        if use == "changing":
            return session.run(inputs, [NAMES[number] for number in rng.integers(0, ADAPTERS, rows)])
        return session.run(inputs, NAMES[0] if use == "one" else None)

    return run


def _loading(path: Path, provider: str) -> Call:
    """Each call reads another adapter from its file, which the adapter cache of one has not held before."""
    session = Bundle.open(path, check_files=False).adapter_session(provider, max_active_adapters=1)
    state = {"next": 0}

    def run(inputs: Inputs) -> object:
        state["next"] += 1
        return session.run(inputs, NAMES[state["next"] % ADAPTERS])

    return run


def _torch(work: Path, precision: str, *, compiled: bool = False) -> Call:
    import torch

    from rmlora.torch_models import load_adapted

    adapted, _ = load_adapted(minilm(), work / "a0", task="text-classification")
    model: Any = adapted.merge_and_unload().eval().to("cuda")
    if precision == "fp16":
        model = model.half()
    if compiled:
        model = torch.compile(model, dynamic=False)

    def run(inputs: Inputs) -> object:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
            return model(**tensors).logits.float().cpu().numpy()

    return run


def _peft(work: Path) -> Call:
    import torch
    from peft import PeftModel

    from rmlora.tasks import get_task
    from rmlora.torch_models import load_task_model

    base = load_task_model(minilm(), get_task("text-classification"), LABELS).model
    model = PeftModel.from_pretrained(base, str(work / NAMES[0]), adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.load_adapter(str(work / name), adapter_name=name)
    model = model.eval().to("cuda")

    def names_of(rows: int) -> Sequence[str]:
        return [NAMES[row % ADAPTERS] for row in range(rows)]

    def run(inputs: Inputs) -> object:
        torch.backends.cuda.matmul.allow_tf32 = False
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
            return model(**tensors, adapter_names=names_of(len(inputs["input_ids"]))).logits.cpu().numpy()

    return run
