"""PEFT's adapters load here, ours load in PEFT, and unsupported or damaged ones are refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from rmlora.errors import AdapterError
from rmlora.package import load_package, save_package
from rmlora_converters.delta import delta_rows
from tests.helpers.models import ARCHITECTURES, adapt, build, lora_config, output, relative_error


@pytest.fixture
def adapter_path(tmp_path: Path) -> Path:
    adapt(build("bert"), lora_config("bert")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, **changes}))


def change_tensors(path: Path, change: Any) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, path / "adapter_model.safetensors")


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"rank_pattern": {}, "alpha_pattern": {}}])
def test_updates_equal_pefts_delta_weights(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    if "rank_pattern" in changes:
        target = ARCHITECTURES[name].targets[-1]
        changes = {"rank_pattern": {target: 2}, "alpha_pattern": {target: 11}}
    model = adapt(build(name), lora_config(name, **changes))
    model.save_pretrained(tmp_path / "adapter")
    adapter = load_package(tmp_path / "adapter")
    for path, module in adapter.modules.items():
        layer = model.base_model.model.get_submodule(path)
        expected = layer.get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(delta_rows(module, tuple(expected.shape)), expected, rtol=1e-5, atol=1e-6)
    head = ARCHITECTURES[name].head
    assert bool(adapter.modules_to_save) == (head is not None)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_our_packages_load_in_peft_unchanged(name: str, tmp_path: Path) -> None:
    model = adapt(build(name), lora_config(name))
    model.save_pretrained(tmp_path / "theirs")
    adapter = load_package(tmp_path / "theirs")
    save_package(replace(adapter, metadata={"task": "text-classification"}), tmp_path / "ours")
    again = PeftModel.from_pretrained(build(name), str(tmp_path / "ours")).eval()
    inputs = ARCHITECTURES[name].inputs()
    assert relative_error(output(again, inputs), output(model, inputs)) == 0
    loaded = load_package(tmp_path / "ours")
    assert loaded.task == "text-classification"
    assert loaded.parameters == adapter.parameters


def test_resized_embeddings_and_biases_become_modules_to_save(tmp_path: Path) -> None:
    model = adapt(build("bert"), lora_config("bert", target_modules=["word_embeddings"], bias="all"))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    adapter = load_package(tmp_path / "adapter")
    assert "bert.embeddings.word_embeddings.weight" in adapter.modules_to_save
    assert "bert.encoder.layer.0.attention.self.query.bias" in adapter.modules_to_save
    assert adapter.modules["bert.embeddings.word_embeddings"].kind == "embedding"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"lora_bias": True}, "LoRA with biases on B"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"target_parameters": ["w"]}, "LoRA on bare parameters"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "PiSSA"),
        ({"init_lora_weights": "olora"}, "OLoRA"),
        ({"peft_type": "IA3"}, "IA3 adapter"),
        ({"peft_type": None}, "non-PEFT adapter"),
    ],
)
def test_variants_are_refused_by_name(adapter_path: Path, changes: dict[str, Any], named: str) -> None:
    change_config(adapter_path, **changes)
    with pytest.raises(AdapterError, match=named):
        load_package(adapter_path)


def test_a_real_dora_adapter_is_refused(tmp_path: Path) -> None:
    adapt(build("bert"), lora_config("bert", use_dora=True)).save_pretrained(tmp_path / "dora")
    with pytest.raises(AdapterError, match="DoRA"):
        load_package(tmp_path / "dora")
    change_config(tmp_path / "dora", use_dora=False)
    with pytest.raises(AdapterError, match="DoRA magnitudes"):
        load_package(tmp_path / "dora")


def test_missing_and_broken_files(adapter_path: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="Adapter not found: .* is not a directory"):
        load_package(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"holds no adapter_config\.json: it is not a PEFT adapter"):
        load_package(tmp_path / "empty")
    shutil.copytree(adapter_path, tmp_path / "named" / "mine")
    with pytest.raises(AdapterError, match=r"but its folders do \(mine\): .* give one of them"):
        load_package(tmp_path / "named")
    whole = (adapter_path / "adapter_model.safetensors").read_bytes()
    (adapter_path / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="is not a complete safetensors file .* fetch it again"):
        load_package(adapter_path)
    (adapter_path / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"holds no adapter_model\.safetensors: the adapter is incomplete"):
        load_package(adapter_path)
    (adapter_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterError, match=r"a pickle that can run code"):
        load_package(adapter_path)
    (adapter_path / "adapter_config.json").write_text("{")
    (adapter_path / "adapter_model.safetensors").write_bytes(whole)
    with pytest.raises(AdapterError, match="cannot be read as JSON"):
        load_package(adapter_path)
    (adapter_path / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterError, match="does not hold a JSON object"):
        load_package(adapter_path)


def test_nan_missing_factor_and_rank_mismatch(adapter_path: Path) -> None:
    good = load_file(adapter_path / "adapter_model.safetensors")
    key = next(name for name in good if name.endswith("lora_A.weight"))

    def write(**changes: Any) -> None:
        save_file({**good, **changes}, adapter_path / "adapter_model.safetensors")

    write(**{key: np.full_like(good[key], np.nan)})
    with pytest.raises(AdapterError, match=r"holds NaN or infinity: the training run that made it diverged"):
        load_package(adapter_path)
    write(**{key: good[key][:3].copy()})
    with pytest.raises(AdapterError, match="do not fit together|has rank 3 but adapter_config.json says 4"):
        load_package(adapter_path)
    save_file({k: v for k, v in good.items() if k != key}, adapter_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="lacks lora_A of"):
        load_package(adapter_path)
    write()
    change_config(adapter_path, r=8)
    with pytest.raises(AdapterError, match=r"has rank 4 but adapter_config\.json says 8"):
        load_package(adapter_path)
    save_file({k: v for k, v in good.items() if "lora" not in k}, adapter_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="holds no LoRA factors"):
        load_package(adapter_path)


def test_our_metadata_is_checked(adapter_path: Path, tmp_path: Path) -> None:
    save_package(load_package(adapter_path), tmp_path / "ours")
    metadata = json.loads((tmp_path / "ours" / "rmlora.json").read_text())
    change_tensors(tmp_path / "ours", lambda tensors: tensors.update(extra=np.zeros(2, np.float32)))
    with pytest.raises(AdapterError, match="SHA-256 differs"):
        load_package(tmp_path / "ours")
    (tmp_path / "ours" / "rmlora.json").write_text(json.dumps({**metadata, "format_version": 9}))
    with pytest.raises(AdapterError, match="has format version 9, this program reads 1"):
        load_package(tmp_path / "ours")
    del metadata["tensors_sha256"]
    (tmp_path / "ours" / "rmlora.json").write_text(json.dumps({**metadata, "rank_mask": {"nowhere": [True]}}))
    with pytest.raises(AdapterError, match="rank mask .* names 'nowhere', which the adapter lacks"):
        load_package(tmp_path / "ours")
