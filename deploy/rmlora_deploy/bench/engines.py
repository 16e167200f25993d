"""Opening a bundle in the engine that is measured: ONNX Runtime, an adapter session, or PyTorch.

Imports torch only for PyTorch's engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ProviderError, require
from rmlora.inputs import Arrays
from rmlora.wording import counted
from rmlora_deploy.bench.bench_plan import SPECIALIZED
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime.providers import get_provider

__all__ = ["BoundModel", "OpenedModel", "open_model"]


@dataclass(frozen=True)
class BoundModel:
    """A model with one batch, which is already on the model's device."""

    run: Callable[[], object]
    """Computes the logits; returns when they are complete."""
    logits: Callable[[], npt.NDArray[Any]]
    """Fetches the logits of the last run, ``[rows, …]``."""


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to run."""

    how: str
    """How it runs, in words."""
    bind: Callable[[Arrays], BoundModel]
    """Gives it a batch."""


def open_model(bundle: Bundle, job: Mapping[str, Any]) -> OpenedModel:
    """Open ``bundle`` as ``job`` says (the fields of :class:`~rmlora_deploy.bench.worker_process.Job`).

    Raises:
        ProviderError: the provider did not start, or PyTorch finds no GPU.
        InputError: the base or the adapter is missing or does not fit.
        DependencyError: PyTorch is not installed.
    """
    if job["engine"] != "onnx":
        return _open_torch(bundle, job)
    if job.get("use") not in (None, "no adapter"):
        return _open_branches(bundle, job)
    return _open_onnx(bundle, job)


def _open_onnx(bundle: Bundle, job: Mapping[str, Any]) -> OpenedModel:
    """Open the graph; inputs and outputs are bound on the provider's device."""
    import onnxruntime as ort

    session = bundle.session(job["provider"], threads=job["threads"])
    device = get_provider(job["provider"]).device

    def bind(arrays: Arrays) -> BoundModel:
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, device)

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return BoundModel(run, lambda: np.asarray(binding.copy_outputs_to_cpu()[0]))

    return OpenedModel(f"{bundle.precision} graph, IOBinding on {device}", bind)


def _open_branches(bundle: Bundle, job: Mapping[str, Any]) -> OpenedModel:
    """Open the graph with its adapters; the time of a run includes looking them up and binding the LoRA inputs."""
    rows = max(rows for rows, _ in job["shapes"])
    session = bundle.adapter_session(job["provider"], threads=job["threads"], rows=rows)
    names = list(bundle.adapters)
    if job["use"] == SPECIALIZED:
        session.specialize(names[0])

    def bind(arrays: Arrays) -> BoundModel:
        count = len(next(iter(arrays.values())))
        many = job["use"] == "one for each row"
        chosen = [names[row % len(names) if many else 0] for row in range(count)]
        last: list[Any] = []

        def run() -> None:
            last[:] = session.run(arrays, chosen)

        return BoundModel(run, lambda: np.stack(last))

    return OpenedModel(f"{bundle.precision} graph, AdapterSession, {counted(len(names), 'adapter')}", bind)


def _open_torch(bundle: Bundle, job: Mapping[str, Any]) -> OpenedModel:
    """Open the merged PyTorch model with its fastest settings: SDPA, inference mode, and fp16 on a GPU if the bundle is fp16."""
    for module in ("torch", "transformers", "peft"):
        require(module, "export")
    import torch

    from rmlora.base import resolve_base
    from rmlora.torch_models import load_adapted

    device = job["provider"]
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderError("PyTorch finds no CUDA device on this machine.")
    torch.set_num_threads(job["threads"])
    torch.set_num_interop_threads(1)
    torch.set_float32_matmul_precision("highest")  # no TF32, as runtime/providers.py sets; the CPU has none
    adapted, _ = load_adapted(
        resolve_base(job["base"]),
        Path(job["adapter"]),
        task=bundle.task.name,
        trust_remote_code=job["trust_remote_code"],
    )
    model: Any = adapted.merge_and_unload().eval().to(device)
    attention = model.config._attn_implementation
    if device == "cuda" and bundle.precision == "fp16":
        model = model.half()
    how = f"{str(model.dtype).removeprefix('torch.')}, {attention}, inference mode"
    if job["engine"] == "torch-compile":
        model, how = torch.compile(model, dynamic=False), f"{how}, torch.compile"

    def bind(arrays: Arrays) -> BoundModel:
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        if "pixel_values" in tensors:
            tensors["pixel_values"] = tensors["pixel_values"].to(adapted.dtype)
        last: list[Any] = []

        def run() -> None:
            with torch.inference_mode():
                last[:] = [bundle.task.outputs.of_model(model(**tensors), tensors, bundle.pooling)]
            if device == "cuda":
                torch.cuda.synchronize()

        return BoundModel(run, lambda: np.asarray(last[0].float().cpu().numpy()))

    return OpenedModel(how, bind)
