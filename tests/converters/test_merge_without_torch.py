"""Without torch, names come from the package or from the names themselves, and what they cannot tell is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from rmlora.checkpoint import Checkpoint
from rmlora.package import load_package, write_metadata
from rmlora.stored_weights import recorded_weight_map, stored_weights
from rmlora_converters.tied_weights import OTHER_OUTPUT_LAYERS
from tests.helpers.cli import Finished, run, run_process
from tests.helpers.merge_cases import CAUSAL, CLASSIFIERS, IMAGES, MLM, SEQ2SEQ, Case, edit, load_complete, make
from tests.helpers.rarely import rarely

T: Any = transformers
ABSENT = ("torch", "torchvision", "peft", "accelerate")
CASES = {case.name: case for case in [*MLM, *CAUSAL, *SEQ2SEQ, *CLASSIFIERS, *IMAGES]}


def merge_both(base: Path, adapter: Path, directory: Path) -> tuple[Finished, Path, Path]:
    """Merge with and without torch; return how the latter ended, and both outputs."""
    with_torch = run("merge", base, adapter, "-o", directory / "with")
    assert with_torch.code == 0, with_torch.stderr
    done = run_process("merge", base, adapter, "-o", directory / "without", without=ABSENT)
    return done, directory / "with", directory / "without"


def equal(left: Path, right: Path) -> bool:
    tensors, others = (load_file(path / "model.safetensors") for path in (left, right))
    return tensors.keys() == others.keys() and all(np.array_equal(tensors[name], others[name]) for name in tensors)


def record(base: Path, adapter: Path) -> None:
    """Write the record of names that ``train`` writes."""
    package = load_package(adapter)
    write_metadata(adapter, {"weight_map": recorded_weight_map(stored_weights(Checkpoint(base), package), package)})


@pytest.mark.parametrize(
    "name",
    [
        "bert-mlm",
        *map(rarely, ("segformer", "gpt-neox", "dinov2-swiglu", "electra-mlm")),
    ],
)
def test_the_record_of_a_package_replaces_transformers(name: str, tmp_path: Path) -> None:
    base, adapter, _ = make(CASES[name], tmp_path)
    record(base, adapter)
    done, left, right = merge_both(base, adapter, tmp_path)
    assert done.code == 0, done.stderr
    assert equal(left, right)


@pytest.mark.parametrize(
    "name",
    [
        "llama-tied",
        "linear-and-transposed",
        *map(
            rarely,
            ("swin", "gpt2-linear-head", "roberta-headless", "vit-headless", "llama-headless", "gpt2-head", "pvt"),
        ),
    ],
)
def test_common_names_are_understood_without_a_record(name: str, tmp_path: Path) -> None:
    base, adapter, _ = make(CASES[name], tmp_path)
    done, left, right = merge_both(base, adapter, tmp_path)
    assert done.code == 0, done.stderr
    assert equal(left, right)


def test_a_layer_norm_under_its_old_name_is_replaced(tmp_path: Path) -> None:
    base, adapter, _ = make(CASES["bert-bias-all"], tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def spelled(name: str) -> str:
        return next((name.replace(new, former) for new, former in old.items() if new in name), name)

    edit(base / "model.safetensors", lambda tensors: {spelled(name): value for name, value in tensors.items()})
    done, left, right = merge_both(base, adapter, tmp_path)
    assert done.code == 0, done.stderr
    assert equal(left, right)


@pytest.mark.rare
def test_the_labels_of_a_head_for_tokens_are_counted(tmp_path: Path) -> None:
    base, adapter, model_class = make(CASES["t5-tokens"], tmp_path)
    done, _, merged = merge_both(base, adapter, tmp_path)
    assert done.code == 0, done.stderr
    assert load_complete(model_class, merged).config.num_labels == 4


@pytest.mark.parametrize(
    "name", ["bert-mlm", "bert-causal", "flaubert", "encoder-decoder-embeddings", "bart-embeddings", "t5"]
)
def test_an_output_layer_that_is_not_recognized_is_refused(name: str, tmp_path: Path) -> None:
    base, adapter, _ = make(CASES[name], tmp_path)
    done = run_process("merge", base, adapter, "-o", tmp_path / "out", without=ABSENT)
    assert done.code != 0
    assert "may share with another layer" in done.stderr and "a machine with torch and transformers" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    base, adapter, _ = make(CASES["segformer"], tmp_path)
    done = run_process("merge", base, adapter, "-o", tmp_path / "out", without=ABSENT)
    assert done.code != 0
    assert "Traceback" not in done.stderr
    assert "Only transformers knows which: use a machine with torch" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_head_is_refused(tmp_path: Path) -> None:
    base, adapter, _ = make(CASES["roberta-headless"], tmp_path)
    edit(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: value for name, value in tensors.items() if "classifier" not in name},
    )
    done = run_process("merge", base, adapter, "-o", tmp_path / "out", without=ABSENT)
    assert done.code != 0
    assert "has a head for text-classification" in done.stderr


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    base, adapter, _ = make(Case("bert", lambda: T.BertForSequenceClassification(T.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)), {"task_type": "SEQ_CLS", "target_modules": ["query"]}), tmp_path)  # fmt: skip
    write_metadata(adapter, {"weight_map": {"version": 1, "parameters": {"x": [{"rows": 3}]}}})
    done = run_process("merge", base, adapter, "-o", tmp_path / "out", without=ABSENT)
    assert done.code != 0
    assert "weight_map in rmlora.json" in done.stderr and "is damaged" in done.stderr


def test_every_language_model_with_another_output_layer_is_known() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for model_type, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in [names] if isinstance(names, str) else names:
            tied = getattr(getattr(T, name, None), "_tied_weights_keys", None)
            if tied and set(tied) != {"lm_head.weight"}:
                assert model_type in OTHER_OUTPUT_LAYERS or model_type == "gpt_neox", (model_type, tied)
