"""Worker: a batch with an adapter in every row, for ranks that grow. The job has ``bundles``, ``way``, ``ranks``, ``shape``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import minilm
from benchmarks.branches import ADAPTERS, LABELS
from benchmarks.random_adapters import draw_arrays, save_random_adapter
from benchmarks.worker import median_ms, random_inputs, read_job, report, versions

Call = Callable[[Any], object]


def main() -> None:
    """Time each rank."""
    job = read_job()
    make = {"ours": ours, "peft": peft}[job["way"]]
    inputs = random_inputs(*job["shape"])
    figures = {}
    for rank in job["ranks"]:
        call = make(job, rank)
        figures[str(rank)] = median_ms(lambda call=call: call(inputs), job["seconds"])
    report(figures, versions=versions("onnxruntime", "torch", "peft"))


def ours(job: dict[str, Any], rank: int) -> Call:
    """Register random adapters of a rank in our graph."""
    from rmlora_deploy.bundles.bundle import Bundle

    bundle = Bundle.open(Path(job["bundles"]) / "branches", check_files=False)
    session = bundle.adapter_session(threads=job["threads"])
    lora_inputs = bundle.lora_inputs()
    names = [f"rank{rank}-{number}" for number in range(ADAPTERS)]
    for number, name in enumerate(names):
        arrays = draw_arrays(lora_inputs, np.random.default_rng(number), rank=rank, labels=len(LABELS), size=0.02)
        session.register(name, lambda arrays=arrays: arrays)
    return lambda inputs: session.run(inputs, [names[row % ADAPTERS] for row in range(len(inputs["input_ids"]))])


def peft(job: dict[str, Any], rank: int) -> Call:
    """Load random adapters of a rank into PEFT."""
    import torch
    from peft import PeftModel

    from rmlora.tasks import get_task
    from rmlora.torch_models import load_task_model

    torch.set_num_threads(job["threads"])
    names = [f"a{number}" for number in range(ADAPTERS)]
    model: Any = load_task_model(minilm(), get_task("text-classification"), LABELS).model
    with tempfile.TemporaryDirectory() as scratch:
        directory = save_random_adapter(
            minilm(), "text-classification", Path(scratch) / "one", rank=rank, labels=LABELS, seed=0, size=0.02
        )
        model = PeftModel.from_pretrained(model, str(directory), adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(str(directory), adapter_name=name)
    model.eval()

    def run(inputs: Any) -> object:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.inference_mode():
            return model(**tensors, adapter_names=[names[row % ADAPTERS] for row in range(len(inputs["input_ids"]))])

    return run


if __name__ == "__main__":
    main()
