"""Training on a base whose modules have other names on disk ends with a package that merges anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from safetensors.numpy import load_file

from tests.helpers.bundles import PROCESSOR
from tests.helpers.cli import run, run_process
from tests.helpers.merge_cases import save_noisy

T: Any = transformers
ABSENT = ("torch", "torchvision", "peft", "accelerate")


@pytest.mark.rare
def test_a_swin_adapter_is_written_and_merged_without_torch(tmp_path: Path) -> None:
    config = T.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    base = save_noisy(T.SwinModel(config), tmp_path / "base")
    processor = {**PROCESSOR, "size": {"height": 32, "width": 32}}
    (base / "preprocessor_config.json").write_text(json.dumps(processor))
    for label, color in {"red": (200, 0, 0), "green": (0, 200, 0)}.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.full((20, 24, 3), color, np.uint8) + np.uint8(number)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    done = run(
        "train", "--task", "image-classification", "--base", base, "--train", tmp_path / "photos", "-o",
        tmp_path / "adapter", "--rank", "4", "--active-rank", "2", "--epochs", "1", "--batch-size", "8",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    record = json.loads((tmp_path / "adapter" / "rmlora.json").read_text())["weight_map"]
    assert record["version"] == 1
    query = "swin.encoder.layers.0.blocks.0.attention.q_proj.weight"
    assert record["parameters"][query] == "encoder.layers.0.blocks.0.attention.self.query.weight"
    outputs = []
    for without in ((), ABSENT):
        outputs.append(tmp_path / f"merged-{len(without)}")
        merged = run_process("merge", base, tmp_path / "adapter", "-o", outputs[-1], without=without)
        assert merged.code == 0, merged.stderr
    left, right = (load_file(path / "model.safetensors") for path in outputs)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)
    _, info = T.SwinForImageClassification.from_pretrained(outputs[0], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
