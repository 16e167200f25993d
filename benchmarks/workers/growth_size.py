"""Worker: merged models of growing size. The job has ``way``, ``models`` (pairs of column and directory) and ``shape``."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.worker import Inputs, median_ms, random_inputs, read_job, report, versions


def main() -> None:
    """Time one model after the other, each alone in memory."""
    job = read_job()
    torch.set_num_threads(job["threads"])
    figures = {}
    for column, directory in job["models"]:
        call = {"ours": ours, "torch": pytorch, "floor": floor}[job["way"]](job, Path(directory))
        inputs = random_inputs(*job["shape"])
        figures[column] = median_ms(lambda call=call, inputs=inputs: call(inputs), job["seconds"], fewest=3)
        del call
        gc.collect()
    report(figures, versions=versions("onnxruntime", "torch", "transformers"))


def ours(job: dict[str, Any], directory: Path) -> Callable[[Inputs], object]:
    """Open the merged bundle."""
    from rmlora_deploy.bundles.bundle import Bundle

    session = Bundle.open(directory / "bundle", check_files=False).session(threads=job["threads"])
    wanted = {item.name for item in session.get_inputs()}
    return lambda inputs: session.run(None, {name: array for name, array in inputs.items() if name in wanted})


def pytorch(job: dict[str, Any], directory: Path) -> Callable[[Inputs], object]:
    """Load the checkpoint."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(directory / "base").eval()

    def run(inputs: Inputs) -> object:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(array) for name, array in inputs.items()})

    return run


def floor(job: dict[str, Any], directory: Path) -> Callable[[Inputs], object]:
    """Compute the products alone."""
    from benchmarks.workers.floors import products

    config = json.loads((directory / "base" / "config.json").read_text(encoding="utf-8"))
    call = products(config, *job["shape"], torch.float32)
    return lambda inputs: call()


if __name__ == "__main__":
    main()
