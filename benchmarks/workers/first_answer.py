"""Worker: from an adapter's directory to the first answer with it. The job has ``way``, ``adapters``, ``bundle`` and ``text``.

A way that starts from nothing does its work once, and the frame's wall time counts, process start included. A way in a
running process loads one adapter after the other and reports the median.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.worker import read_job, report, versions

LABELS = ("no", "yes")


def main() -> None:
    """Do what the way says."""
    job = read_job()
    figure = WAYS[job["way"]](job)
    report({"first answer": figure} if figure is not None else {}, versions=versions("onnxruntime", "torch", "peft"))


def ours_running(job: dict[str, Any]) -> float:
    """Register adapters in a graph that serves already, checks and try-out included, as the server does."""
    from rmlora.package import load_package
    from rmlora_deploy.bundles.bundle import Bundle
    from rmlora_deploy.bundles.convert_adapter import TryOut, convert_adapter

    bundle = Bundle.open(job["bundle"], check_files=False)
    session = bundle.adapter_session(threads=job["threads"])
    inputs = bundle.preprocessor(next(iter(bundle.adapters)))([job["text"]])
    try_out = TryOut.of(bundle, session)
    session.run(inputs, next(iter(bundle.adapters)))

    def answer(path: str) -> None:
        converted = convert_adapter(
            load_package(Path(path)), session.lora_inputs, session.input_types, name=path, task=bundle.task,
            pooling=bundle.manifest.pooling, max_length=bundle.manifest.max_length, try_out=try_out,
            base_config=bundle.base_config,
        )  # fmt: skip
        session.register(path, lambda: converted.arrays)
        session.run(inputs, path)

    return _median_ms(answer, job["adapters"])


def ours_known(job: dict[str, Any]) -> float:
    """Use adapters that the bundle holds already for the first time."""
    from rmlora_deploy.bundles.bundle import Bundle

    bundle = Bundle.open(job["bundle"], check_files=False)
    names = list(bundle.adapters)
    session = bundle.adapter_session(threads=job["threads"], max_active_adapters=len(names))
    inputs = bundle.preprocessor(names[0])([job["text"]])
    session.run(inputs, names[0])
    return _median_ms(lambda name: session.run(inputs, name), names[1:])


def peft_running(job: dict[str, Any]) -> float:
    """Load adapters into a PEFT model that answers already."""
    model, tokenizer, torch = _peft(job, job["adapters"][0])
    encoded = tokenizer([job["text"]], return_tensors="pt")

    def answer(path: str) -> None:
        name = Path(path).name
        model.load_adapter(path, adapter_name=name)
        model.set_adapter(name)
        with torch.inference_mode():
            model(**encoded)

    return _median_ms(answer, job["adapters"][1:])


def read_files(job: dict[str, Any]) -> float:
    """Read the adapter's bytes: the floor of every way in a running process."""
    return _median_ms(lambda path: (Path(path) / "adapter_model.safetensors").read_bytes(), job["adapters"])


def ours_from_nothing(job: dict[str, Any]) -> None:
    """Open a bundle that holds the adapter and classify a text with it."""
    from rmlora_deploy import load

    load(job["bundle"]).predict([job["text"]], job["name"])


def peft_from_nothing(job: dict[str, Any]) -> None:
    """Load base and adapter with PEFT and classify a text."""
    model, tokenizer, torch = _peft(job, job["adapters"][0])
    with torch.inference_mode():
        model(**tokenizer([job["text"]], return_tensors="pt"))


def python_alone(job: dict[str, Any]) -> None:
    """Read the weights and the adapter: the floor of every way from nothing."""
    (Path(job["base"]) / "model.safetensors").read_bytes()
    read_files(job)


def add_to_bundle(job: dict[str, Any]) -> None:
    """Add an adapter to a bundle on disk under a new name, then open the bundle and classify a text with it."""
    from rmlora_deploy import load

    name = f"first{time.time_ns()}"
    words = ("adapter", "add", job["bundle"], f"{name}={job['adapters'][0]}")
    subprocess.run([sys.executable, "-m", "rmlora_deploy", *words], check=True, stdout=subprocess.DEVNULL)
    load(job["bundle"]).predict([job["text"]], name)


def export_merged(job: dict[str, Any]) -> None:
    """Merge the adapter into a new graph with ``export``, then open it and classify a text."""
    from rmlora_deploy import load

    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        words = ("export", job["base"], "--adapter", job["adapters"][0], "--output", str(bundle), "--no-verify")
        subprocess.run([sys.executable, "-m", "rmlora_deploy", *words], check=True, stdout=subprocess.DEVNULL)
        load(bundle).predict([job["text"]])


def _peft(job: dict[str, Any], adapter: str) -> tuple[Any, Any, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(job["threads"])
    base: Any = AutoModelForSequenceClassification.from_pretrained(job["base"], num_labels=len(LABELS))
    model = PeftModel.from_pretrained(base, adapter, adapter_name=Path(adapter).name).eval()
    return model, AutoTokenizer.from_pretrained(job["base"]), torch


def _median_ms(call: Callable[[Any], object], items: list[Any]) -> float:
    samples = []
    for item in items:
        start = time.perf_counter()
        call(item)
        samples.append(1e3 * (time.perf_counter() - start))
    return statistics.median(samples)


WAYS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "ours running": ours_running,
    "ours known": ours_known,
    "peft running": peft_running,
    "files": read_files,
    "ours from nothing": ours_from_nothing,
    "peft from nothing": peft_from_nothing,
    "python": python_alone,
    "add": add_to_bundle,
    "export": export_merged,
}

if __name__ == "__main__":
    main()
