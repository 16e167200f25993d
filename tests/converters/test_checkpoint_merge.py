"""A merged checkpoint equals PEFT's merge and the adapted model, on every architecture; shards, ties, types, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

import rmlora_converters.checkpoint_merge as checkpoint_merge
import rmlora_converters.write_planned as write_planned
from rmlora.adapter import Adapter
from rmlora.errors import AdapterError, BaseMismatchError, OutputError
from rmlora.package import load_package, save_package
from rmlora_converters.checkpoint_merge import merge_checkpoint
from tests.helpers.models import ARCHITECTURES, adapt, build, lora_config, output, relative_error, save_base

NAMES = sorted(ARCHITECTURES)


def make(
    directory: Path, name: str, base_dtype: torch.dtype = torch.float32, seed: int = 1, **changes: Any
) -> tuple[Path, Path]:
    """Save a base and an adapter for it; return both directories."""
    base = save_base(build(name).to(base_dtype), directory / "base")
    model = type(build(name)).from_pretrained(base, dtype=torch.float32)
    adapted = adapt(model, lora_config(name, **changes), seed=seed, size=0.1)
    adapted.save_pretrained(directory / "adapter", save_embedding_layers=False)
    return base, directory / "adapter"


def load(name: str, path: Path) -> torch.nn.Module:
    """Load a checkpoint with the class of its architecture; no tensor may be missing or unexpected."""
    model, info = type(build(name)).from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def assert_merged_equals_peft(name: str, base: Path, adapter: Path, merged: Path, tolerance: float = 1e-5) -> None:
    inputs = ARCHITECTURES[name].inputs()
    applied_model = PeftModel.from_pretrained(load(name, base), str(adapter)).eval()
    applied = output(applied_model, inputs)
    ours = output(load(name, merged), inputs)
    assert relative_error(ours, applied) <= tolerance
    assert relative_error(ours, output(applied_model.merge_and_unload(), inputs)) <= tolerance
    assert relative_error(output(load(name, base), inputs), applied) > 1e-3  # the adapter does something


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(
    rank=st.integers(1, 9),
    alpha=st.integers(1, 16),
    rslora=st.booleans(),
    pattern=st.booleans(),
    seed=st.integers(0, 5),
)
def test_merged_is_peft(
    name: str, rank: int, alpha: int, rslora: bool, pattern: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp(name)
    target = ARCHITECTURES[name].targets[0]
    patterns = {"rank_pattern": {target: rank + 1}, "alpha_pattern": {target: 3}} if pattern else {}
    base, adapter = make(directory, name, seed=seed, r=rank, lora_alpha=alpha, use_rslora=rslora, **patterns)
    merge_checkpoint(base, load_package(adapter), directory / "merged")
    assert_merged_equals_peft(name, base, adapter, directory / "merged")


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("bert", ["word_embeddings", "query"]),
        ("gpt2", ["wte", "c_attn"]),
        ("vit", ["projection", "fc1"]),  # a patch convolution
        ("llama", ["embed_tokens", "up_proj"]),
    ],
)
def test_embeddings_and_convolutions(name: str, targets: list[str], tmp_path: Path) -> None:
    base, adapter = make(tmp_path, name, target_modules=targets)
    merge_checkpoint(base, load_package(adapter), tmp_path / "merged")
    assert_merged_equals_peft(name, base, adapter, tmp_path / "merged")


@pytest.mark.parametrize("name", NAMES)
def test_masked_directions_contribute_nothing(name: str, tmp_path: Path) -> None:
    base, path = make(tmp_path, name)
    adapter = load_package(path)
    mask = np.array([True, False, True, False])
    masked = replace(adapter, modules={p: replace(m, rank_mask=mask) for p, m in adapter.modules.items()})
    save_package(masked, tmp_path / "masked")
    merge_checkpoint(base, load_package(tmp_path / "masked"), tmp_path / "merged")
    zeroed = {}
    for module_path, module in adapter.modules.items():
        factor = module.lora_A.copy()
        factor[~mask] = 0
        zeroed[module_path] = replace(module, lora_A=factor)
    save_package(replace(adapter, modules=zeroed), tmp_path / "zeroed")
    assert_merged_equals_peft(name, base, tmp_path / "zeroed", tmp_path / "merged")


def test_shards_and_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = make(tmp_path, "bert")
    merge_checkpoint(base, load_package(adapter), tmp_path / "whole")
    sharded = save_base(build("bert"), tmp_path / "sharded", max_shard_size="6KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    monkeypatch.setattr(write_planned, "PIECE_BYTES", 256)
    report = merge_checkpoint(sharded, load_package(adapter), tmp_path / "pieces")
    assert report.shards == len(list((tmp_path / "pieces").glob("*.safetensors"))) > 3
    left, right = load("bert", tmp_path / "whole").state_dict(), load("bert", tmp_path / "pieces").state_dict()
    assert all(torch.equal(left[key], right[key]) for key in left)
    index = json.loads((tmp_path / "pieces" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == report.nbytes


def test_a_bare_encoder_gains_a_head_under_the_names_of_the_full_model(tmp_path: Path) -> None:
    encoder = save_base(build("bert").bert, tmp_path / "encoder")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    adapt(model, lora_config("bert")).save_pretrained(tmp_path / "adapter")
    report = merge_checkpoint(encoder, load_package(tmp_path / "adapter"), tmp_path / "merged")
    assert report.added == ("classifier.bias", "classifier.weight")
    auto, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert auto.config.num_labels == 3
    applied = output(model.eval(), ARCHITECTURES["bert"].inputs())
    assert relative_error(output(auto.eval(), ARCHITECTURES["bert"].inputs()), applied) <= 1e-5


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_tied_weights_are_untied_when_only_one_side_is_adapted(target: str, tmp_path: Path) -> None:
    config = build("llama").config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    base = save_base(transformers.LlamaForCausalLM(config), tmp_path / "base")
    inputs = ARCHITECTURES["llama"].inputs()
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    adapted = adapt(model, lora_config("llama", target_modules=[target], modules_to_save=None, task_type="CAUSAL_LM"))
    applied = output(adapted, inputs)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    report = merge_checkpoint(base, load_package(tmp_path / "adapter"), tmp_path / "merged")
    assert report.untied == "lm_head"
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert relative_error(output(merged, inputs), applied) <= 1e-5


def test_bfloat16_is_kept_and_its_loss_reported(tmp_path: Path) -> None:
    base, path = make(tmp_path, "llama", torch.bfloat16)
    adapter = load_package(path)
    report = merge_checkpoint(base, adapter, tmp_path / "merged")
    before, after = (transformers.AutoModel.from_pretrained(p, dtype="auto") for p in (base, tmp_path / "merged"))
    assert after.dtype == torch.bfloat16
    for item in report.modules:
        name = item.module.removeprefix("model.") + ".weight"
        module = adapter.modules[item.module]
        delta = module.scale * module.B @ module.A
        weight = before.state_dict()[name].float().numpy()
        rounded = after.state_dict()[name].float().numpy()
        loss = np.linalg.norm(rounded - (weight + delta)) / np.linalg.norm(delta)
        assert item.loss == pytest.approx(loss, rel=1e-3)
        assert item.relative_size == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(weight), rel=1e-3)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    return replace(adapter, modules={p: replace(m, scale=m.scale * factor) for p, m in adapter.modules.items()})


def test_an_update_that_rounds_away_warns(tmp_path: Path) -> None:
    base, adapter = make(tmp_path, "bert", torch.bfloat16)
    with pytest.warns(UserWarning, match=r"of the update of '.*' was rounded away"):
        merge_checkpoint(base, scaled(load_package(adapter), 1e-3), tmp_path / "merged")


def test_overflow_of_the_type_of_the_base_is_an_error(tmp_path: Path) -> None:
    base, adapter = make(tmp_path, "bert", torch.float16)
    with pytest.raises(AdapterError, match="gives values that F16 cannot hold"):
        merge_checkpoint(base, scaled(load_package(adapter), 1e9), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_another_base_is_refused_unless_allowed(tmp_path: Path) -> None:
    base, path = make(tmp_path, "bert")
    adapter = load_package(path)
    marked = replace(adapter, metadata={"base_fingerprint": "sha256:" + "0" * 64, "base_model": "some-base"})
    with pytest.raises(BaseMismatchError, match=r"made for some-base .* --allow-base-mismatch"):
        merge_checkpoint(base, marked, tmp_path / "merged")
    merge_checkpoint(base, marked, tmp_path / "merged", allow_base_mismatch=True)
    other = save_base(build("gpt2"), tmp_path / "gpt2")
    with pytest.raises(AdapterError, match="which the base at .* does not have"):
        merge_checkpoint(other, adapter, tmp_path / "never")


def test_a_quantized_base_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base, adapter = make(tmp_path, "bert")
    tensors = load_file(base / "model.safetensors")
    key = "bert.encoder.layer.0.attention.self.query.weight"
    tensors[key] = tensors[key].to(torch.int8)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"stores '.*query\.weight' as I8 \(quantized\)"):
        merge_checkpoint(base, load_package(adapter), tmp_path / "merged")


def test_a_disk_too_small_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = make(tmp_path, "bert")
    usage = checkpoint_merge.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(checkpoint_merge.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"needs .* GB and the disk of .* nothing was written"):
        merge_checkpoint(base, load_package(adapter), tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


KILLED = """
import sys, time
import rmlora_converters.checkpoint_merge as m
import rmlora_converters.write_planned as w
from rmlora.package import load_package
w.PIECE_BYTES = 512
slow = lambda done, total: time.sleep(0.002)
print("ready", flush=True)
m.merge_checkpoint(sys.argv[1], load_package(sys.argv[2]), sys.argv[3], overwrite=True, on_progress=slow)
"""


@pytest.mark.parametrize("existing", [False, True])
def test_a_kill_leaves_the_output_absent_or_complete(existing: bool, tmp_path: Path) -> None:
    base, adapter = make(tmp_path, "bert")
    target = tmp_path / "merged"
    merge_checkpoint(base, load_package(adapter), tmp_path / "expected")
    expected = (tmp_path / "expected" / "model.safetensors").read_bytes()
    finished = 0
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 2.0):
        if existing:
            merge_checkpoint(base, load_package(adapter), target, overwrite=True)
        command = [sys.executable, "-c", KILLED, str(base), str(adapter), str(target)]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        finished += process.wait() == 0
        if target.exists():
            assert (target / "model.safetensors").read_bytes() == expected
            assert (target / "config.json").is_file() and (target / "rmlora_merge.json").is_file()
        else:
            assert not existing
    merge_checkpoint(base, load_package(adapter), target, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", "expected", "merged"}
    assert finished < 8
