"""What works with one architecture, step by step: a tiny random base, trained, merged and exported in every way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image

from rmlora.config import RMLoRAConfig
from rmlora.errors import RMLoRAError
from rmlora.tasks import TASKS
from rmlora_deploy import export, merge, train
from tests.helpers.branch_cases import BranchCase, expected, load, make_sources

__all__ = ["STEPS", "YES", "try_steps"]

STEPS = ("train", "merge", "merged", "branches", "int8")
YES = "yes"
_SEEDS = {"gemma2-causal": 1}
"""Random weights whose classes are far enough apart for 8 bits; all others have them with seed 0."""


def try_steps(case: BranchCase, directory: Path) -> dict[str, str]:
    """Return for every step ``yes``, or the sentence with which it is refused; all results are compared with PyTorch and PEFT."""
    base, adapters = make_sources(case, directory, seed=_SEEDS.get(case.name, 0))
    one = adapters["one"]
    steps: dict[str, Callable[[], object]] = {
        "train": lambda: _train(case, base, directory),
        "merge": lambda: _merge(case, base, one, directory),
        "merged": lambda: export(base, one, directory / "merged"),
        "branches": lambda: export(base, dict(adapters), directory / "both"),
        "int8": lambda: export(base, one, directory / "int8", precision="int8"),
    }
    return {name: _tried(step, directory) for name, step in steps.items()}


def _tried(step: Callable[[], object], directory: Path) -> str:
    try:
        step()
    except RMLoRAError as error:
        return str(error).replace(f"{directory}/", "")
    return YES


def _train(case: BranchCase, base: Path, directory: Path) -> None:
    """Train two steps on six rows."""
    data = directory / "data"
    names = ["a", "b", "c"]
    if TASKS[case.task].inputs.modality == "image":
        rng = np.random.default_rng(0)
        for number in range(12):
            folder = data / names[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        source = str(data)
    else:
        rows = [{"text": f"a few words {number} of text", "label": names[number % 3]} for number in range(12)]
        data.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = str(data.with_suffix(".jsonl"))
    targets: Any = case.lora["target_modules"]
    config = RMLoRAConfig(rank=2, active_rank=2, target_modules=targets if isinstance(targets, str) else tuple(targets))
    train(base, source, directory / "trained", task=case.task, config=config, validation=source, epochs=1, batch_size=6)


def _merge(case: BranchCase, base: Path, adapter: Path, directory: Path) -> None:
    """Merge into the checkpoint, and compare with PEFT on sentences or images."""
    merge(base, adapter, directory / "checkpoint")
    task = TASKS[case.task]
    processor = task.inputs.load_processor(base)
    names = list(getattr(processor, "model_input_names", ["pixel_values"]))
    rows = task.inputs.rows(processor, task.inputs.sample(3), lengths=[None] * 3, names=names)
    batch = task.inputs.collate(processor, rows)
    unmerged = PeftModel.from_pretrained(load(case, base, case.labels[0]), str(adapter)).eval()
    with torch.inference_mode():
        want, got = (
            expected(case, model, batch) for model in (unmerged, load(case, directory / "checkpoint", case.labels[0]))
        )
    np.testing.assert_allclose(got, want, atol=1e-4 * float(np.abs(want).max()))
