"""Worker: other ways to give every row of a batch its own adapter. The job has ``bundles`` and ``way``.

``runs``: one run after another with onnxruntime's own ``LoraAdapter``; ``one_run``: one run with one such adapter for all
rows; ``merged``: one merged model for each adapter, run row by row; ``peft_one``: PEFT with one active adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.branches import ADAPTERS, LABELS
from benchmarks.worker import Inputs, Model, run_encoder
from rmlora_deploy.bundles.bundle import Bundle

NAMES = [f"a{number}" for number in range(ADAPTERS)]


def open_model(job: dict[str, Any]) -> Model:
    """Open what the way needs."""
    return WAYS[job["way"]](Path(job["bundles"]), job["threads"])


def lora_adapters(bundles: Path, threads: int, *, together: bool) -> Model:
    """Run the graph with branches, with the adapter files that onnxruntime itself reads."""
    bundle = Bundle.open(bundles / "branches", check_files=False)
    session = _session(bundle.model_path, threads)
    chosen = []
    for name in NAMES:
        adapter = ort.LoraAdapter()
        adapter.Load(str(bundle.file(bundle.adapter(name).file)))
        run_options = ort.RunOptions()
        run_options.add_active_adapter(adapter)
        chosen.append((adapter, run_options))  # the options do not keep their adapter alive

    def run(inputs: Inputs) -> Any:
        if together:
            return session.run(None, inputs, chosen[0][1])[0]
        parts = [
            session.run(None, _row(inputs, row), chosen[row % ADAPTERS][1])[0]
            for row in range(len(inputs["input_ids"]))
        ]
        return np.concatenate(parts)

    return run


def merged_models(bundles: Path, threads: int) -> Model:
    """Run a merged model for each row; all have the same weights here, in memory of their own."""
    path = Bundle.open(bundles / "merged", check_files=False).model_path
    sessions = [_session(path, threads) for _ in NAMES]

    def run(inputs: Inputs) -> Any:
        rows = range(len(inputs["input_ids"]))
        return np.concatenate([sessions[row % ADAPTERS].run(None, _row(inputs, row))[0] for row in rows])

    return run


def peft_one(bundles: Path, threads: int) -> Model:
    """Run PyTorch with PEFT and one active adapter, not merged."""
    import torch
    from peft import PeftModel

    from benchmarks.assets import minilm
    from rmlora.tasks import get_task
    from rmlora.torch_models import load_task_model

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    base = load_task_model(minilm(), get_task("text-classification"), LABELS).model
    model = PeftModel.from_pretrained(base, str(bundles / "a0")).eval()

    def run(inputs: Inputs) -> Any:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()

    return run


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _row(inputs: Inputs, row: int) -> Inputs:
    return {name: array[row : row + 1] for name, array in inputs.items()}


WAYS: dict[str, Callable[[Path, int], Model]] = {
    "runs": lambda bundles, threads: lora_adapters(bundles, threads, together=False),
    "one_run": lambda bundles, threads: lora_adapters(bundles, threads, together=True),
    "merged": merged_models,
    "peft_one": peft_one,
}

if __name__ == "__main__":
    run_encoder(open_model, "onnxruntime", "onnxruntime-gpu", "torch", "peft", "transformers")
