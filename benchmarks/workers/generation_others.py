"""Worker: steps of a language model elsewhere. The job has ``bundles``, ``base``, ``way``, ``seconds`` and ``threads``.

``genai`` and ``genai_adapter``: onnxruntime_genai on our bundles, which it loads as they are; it has one adapter at a time and
is given one row. ``peft``, ``peft_each`` and ``torch``: PyTorch in the job's ``dtype`` with PEFT's layers for one adapter, for one of each row
(``adapter_names``), or with the adapter merged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.generation_steps import Begin, measure_steps
from benchmarks.worker import read_job, report, versions

ADAPTERS = 8


def main() -> None:
    """Time the steps of batches, and the reading of prompts."""
    job = read_job()
    genai = job["way"].startswith("genai")
    begin = _genai(job) if genai else _torch(job)
    packages = ("onnxruntime_genai",) if genai else ("torch", "transformers", "peft")
    report(measure_steps(begin, job["seconds"], rows=(1,) if genai else (1, 8)), versions=versions(*packages, "numpy"))


def _genai(job: dict[str, Any]) -> Begin:
    import onnxruntime_genai as og

    bundle = Path(job["bundles"]) / ("branches" if job["way"] == "genai_adapter" else "merged")
    config = og.Config(str(bundle))
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {job["threads"]}}}}}}}}}')
    model = og.Model(config)
    adapters = og.Adapters(model)
    if job["way"] == "genai_adapter":
        adapters.load(str(bundle / "adapters" / "a0.onnx_adapter"), "a0")

    def begin(prompts: list[list[int]], tokens: list[int], steps: int) -> Callable[[], object]:
        (prompt,) = prompts
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + steps + 1, do_sample=False)
        generator = og.Generator(model, parameters)
        if job["way"] == "genai_adapter":
            generator.set_active_adapter(adapters, "a0")
        generator.append_tokens(prompt)
        return lambda: generator.append_tokens(tokens)

    return begin


def _torch(job: dict[str, Any]) -> Begin:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(job["threads"])
    base: Any = AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, job["dtype"]))
    packages = Path(job["bundles"]).parent
    model: Any = PeftModel.from_pretrained(base, str(packages / "a0"), adapter_name="a0")
    if job["way"] == "torch":
        model = model.merge_and_unload()
    if job["way"] == "peft_each":
        for number in range(1, ADAPTERS):
            model.load_adapter(str(packages / f"a{number}"), adapter_name=f"a{number}")
    model.to(getattr(torch, job["dtype"])).eval()

    def begin(prompts: list[list[int]], tokens: list[int], steps: int) -> Callable[[], object]:
        cache = DynamicCache()
        more = (
            {"adapter_names": [f"a{row % ADAPTERS}" for row in range(len(prompts))]}
            if job["way"] == "peft_each"
            else {}
        )
        run = torch.inference_mode()(partial(model, past_key_values=cache, use_cache=True, logits_to_keep=1, **more))
        run(input_ids=torch.tensor(prompts))
        ids = torch.tensor(tokens)[:, None]
        return lambda: run(input_ids=ids)

    return begin


if __name__ == "__main__":
    main()
