"""Files as other tools write them, of every kind that transformers and PEFT know, pass the typed readers."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import peft
import pytest
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import BaseModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from rmlora.errors import AdapterError, CheckpointError
from rmlora.file_models import BaseConfig, CheckpointIndex, ImageProcessorConfig, TokenizerConfig
from rmlora.json_files import check_values, parse_json
from rmlora.package import load_package
from rmlora.processors import load_tokenizer, save_processor
from tests.helpers.bundles import make_sources
from tests.helpers.cli import tokenizer


def passes(model: type[BaseModel], text: str, name: object) -> None:
    check_values(model, parse_json(text, where=str(name), finite=False), where=str(name), advice="")


def test_the_configuration_of_every_architecture_is_accepted() -> None:
    count = 0
    for name in CONFIG_MAPPING:
        text = ""
        with suppress(Exception):  # a few have no default
            text = CONFIG_MAPPING[name]().to_json_string(use_diff=False)
        if text:
            passes(BaseConfig, text, name)
            count += 1
    assert count > 300


def test_every_image_processor_is_accepted() -> None:
    names: set[Any] = set()
    for entry in IMAGE_PROCESSOR_MAPPING_NAMES.values():
        names.update(
            entry.values() if isinstance(entry, dict) else entry if isinstance(entry, (tuple, list)) else [entry]
        )
    count = 0
    for name in sorted(filter(None, names)):
        try:
            text = getattr(transformers, name)().to_json_string()
        except ImportError:  # needs torchvision
            continue
        passes(ImageProcessorConfig, text, name)
        count += 1
    assert count > 30


def test_every_other_method_of_peft_is_refused_by_its_name(tmp_path: Path) -> None:
    """Not by a key that has another type there, as ``rank_pattern`` of AdaLoRA."""
    _, package = make_sources("bert", tmp_path)
    for kind, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if kind is peft.PeftType.LORA:
            continue
        (package / "adapter_config.json").write_text(
            json.dumps(
                {"peft_type": kind.value, "r": 0, "rank_pattern": {"query": [True, False]}, "class": str(config_class)}
            )
        )
        with pytest.raises(AdapterError, match=f"is a {kind.value} adapter: only LoRA"):
            load_package(package)


@pytest.mark.parametrize(
    "keys",
    [
        {"peft_version": None, "auto_mapping": None, "revision": None, "layers_pattern": None, "layers_to_transform": None},
        {"r": 4.0, "lora_alpha": 6, "rank_pattern": {}, "alpha_pattern": {}},
        {"r": 4, "lora_alpha": 6.0, "rank_pattern": None, "alpha_pattern": None, "modules_to_save": None},
        {"megatron_config": None, "megatron_core": "megatron.core", "loftq_config": None, "eva_config": {}, "corda_config": None},
        {"target_modules": ["key", "query"], "exclude_modules": None, "use_rslora": False, "bias": "none", "init_lora_weights": "gaussian"},
        {"init_lora_weights": True, "enable_lora": None, "merge_weights": False, "a_key_of_tomorrow": {"x": [1]}},
    ],
)  # fmt: skip
def test_adapter_configurations_of_all_versions_are_accepted(tmp_path: Path, keys: dict[str, Any]) -> None:
    _, package = make_sources("bert", tmp_path)
    config = json.loads((package / "adapter_config.json").read_text())
    before = load_package(package)
    (package / "adapter_config.json").write_text(json.dumps({**config, **keys}))
    after = load_package(package)
    assert {path: module.scale for path, module in after.modules.items()} == {
        path: module.scale for path, module in before.modules.items()
    }


def test_published_oddities_are_accepted() -> None:
    check_values(TokenizerConfig, {
        "model_max_length": 1000000000000000019884624838656, "pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": False},
        "unk_token": None, "added_tokens_decoder": {"0": {"content": "<s>", "special": True}}, "chat_template": [{"name": "default"}],
        "extra_special_tokens": {}, "sp_model_kwargs": {}, "name_or_path": "/data/x", "special_tokens_map_file": None,
    }, where="", advice="")  # fmt: skip
    check_values(BaseConfig, {"num_labels": 2, "id2label": None, "vocab_size": 30522.0, "torch_dtype": None, "n_layer": 12,
                              "bit_depth": 65536, "num_experts": 16384, "label2id": {"x": 0}, "rope_scaling": {"factor": 8.0}},
                 where="", advice="")  # fmt: skip
    check_values(
        CheckpointIndex,
        {"metadata": {"total_size": 1e9, "format": None}, "weight_map": {"a": "b"}},
        where="",
        advice="",
    )
    check_values(ImageProcessorConfig, {"size": 224, "crop_size": {"height": 224.0, "width": 224}, "image_mean": [0, 0, 0],
                                        "resample": None, "feature_extractor_type": "ViTFeatureExtractor"}, where="", advice="")  # fmt: skip


def test_a_token_with_an_absurd_number_is_refused_before_writing_counts_up_to_it(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    words = tokenizer()
    words.save_pretrained(tmp_path / "base")
    save_processor(load_tokenizer(tmp_path / "base"), tmp_path, source="base")
    file = tmp_path / "base" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["w1"] = 4_000_000_000
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"of base cannot be written \(a token has the number 4,000,000,000\)"):
        save_processor(load_tokenizer(tmp_path / "base"), tmp_path, source="base")
