"""Names that are spelled otherwise on disk or in an adapter lead to the right tensor, or to a refusal that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from rmlora.errors import AdapterError
from rmlora.package import load_package, save_package
from rmlora_converters.checkpoint_merge import merge_checkpoint
from rmlora_converters.compress import compress_adapter
from tests.helpers.merge_cases import TINY, edit, merge_error, save_adapter_for, save_noisy

T: Any = transformers
Tensors = dict[str, torch.Tensor]
LABELED = {**TINY, "num_labels": 3}


def bert(directory: Path, *, encoder: bool = False, **lora: Any) -> tuple[Path, Path]:
    """Save a BERT classifier, or its encoder alone, and a classification adapter for it."""
    torch.manual_seed(0)
    config = T.BertConfig(**LABELED)
    base = save_noisy(T.BertModel(config) if encoder else T.BertForSequenceClassification(config), directory / "base")
    model = T.BertForSequenceClassification.from_pretrained(base)
    return base, save_adapter_for(
        model, directory / "adapter", **{"task_type": "SEQ_CLS", "target_modules": ["query"], **lora}
    )


def rename(path: Path, old: str, new: str) -> None:
    edit(path, lambda tensors: {name.replace(old, new): value for name, value in tensors.items()})


def names(path: Path) -> set[str]:
    with safe_open(path / "model.safetensors", framework="np") as file:
        return set(file.keys())


@pytest.mark.parametrize("lora", [{"bias": "all"}, {"modules_to_save": ["LayerNorm", "classifier"]}])
def test_a_tensor_saved_whole_replaces_the_one_stored_under_an_old_name(lora: dict[str, Any], tmp_path: Path) -> None:
    base, adapter = bert(tmp_path, **lora)
    rename(base / "model.safetensors", "LayerNorm.weight", "LayerNorm.gamma")
    rename(base / "model.safetensors", "LayerNorm.bias", "LayerNorm.beta")
    got, report = merge_error(T.BertForSequenceClassification, base, adapter, tmp_path / "merged")
    assert got <= 5e-6
    assert report.added == ()
    assert names(tmp_path / "merged") == names(base)


@pytest.mark.parametrize("old", [True, False])
def test_weight_normalization_under_its_old_and_its_new_name(old: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    convolutions = {"conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4}
    config = T.Wav2Vec2Config(**size, **convolutions, num_feat_extract_layers=2, num_conv_pos_embedding_groups=2)
    base = save_noisy(T.Wav2Vec2ForSequenceClassification(config), tmp_path / "base")
    model = T.Wav2Vec2ForSequenceClassification.from_pretrained(base)
    adapter = save_adapter_for(
        model, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["pos_conv_embed", "classifier"]
    )
    if old:
        for number, letter in enumerate("gv"):
            rename(base / "model.safetensors", f".parametrizations.weight.original{number}", f".weight_{letter}")
    merge_checkpoint(base, load_package(adapter), tmp_path / "merged")
    merged, info = T.Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    from peft import PeftModel

    sound = {"input_values": torch.randn(2, 400)}
    with torch.inference_mode():
        reference = PeftModel.from_pretrained(T.Wav2Vec2ForSequenceClassification.from_pretrained(base), str(adapter))
        want, got = reference.eval()(**sound).logits, merged.eval()(**sound).logits
    assert float((got - want).abs().max() / want.abs().max()) <= 5e-6


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize(
    "spell",
    [
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: "_orig_mod." + name,
        lambda name: "module." + name,
        lambda name: name.replace("base_model.model.", "base_model.model.module."),
        lambda name: "base_model.model." + name,
        lambda name: name.replace(".encoder.", "._orig_mod.encoder."),
        lambda name: name.replace("bert.encoder", "bert._fsdp_wrapped_module.encoder"),
        lambda name: name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."),
    ],
    ids=["compiled-inside", "compiled", "ddp", "ddp-inside", "doubled", "compiled-part", "fsdp", "adapter-name"],
)
def test_wrapper_prefixes_are_no_part_of_the_model(spell: Callable[[str], str], encoder: bool, tmp_path: Path) -> None:
    base, adapter = bert(tmp_path, encoder=encoder)
    plain = load_package(adapter)
    merge_checkpoint(base, plain, tmp_path / "plain")
    edit(adapter / "adapter_model.safetensors", lambda tensors: {spell(name): value for name, value in tensors.items()})
    merge_checkpoint(base, load_package(adapter), tmp_path / "merged")
    merged = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert merged == (tmp_path / "plain" / "model.safetensors").read_bytes()


def test_a_file_that_holds_a_module_twice_or_two_adapters_is_refused(tmp_path: Path) -> None:
    _, adapter = bert(tmp_path)
    file = adapter / "adapter_model.safetensors"
    edit(file, lambda tensors: {**tensors, **{f"module.{name}": value + 1 for name, value in tensors.items()}})
    with pytest.raises(AdapterError, match="twice, under names that differ only by a wrapper's prefix"):
        load_package(adapter)
    two = {"lora_A": ("lora_A.one", "lora_A.two"), "lora_B": ("lora_B.one", "lora_B.two")}

    def renamed(tensors: Tensors) -> Tensors:
        plain = {name: value for name, value in tensors.items() if not name.startswith("module.")}
        return {
            name.replace(old, spelled[".layer.1." in name]): value
            for name, value in plain.items()
            for old, spelled in two.items()
            if old in name
        }

    edit(file, renamed)
    with pytest.raises(AdapterError, match=r"factors of several adapters \(one, two\)"):
        load_package(adapter)


def test_a_tensor_that_zero_3_left_empty_is_refused(tmp_path: Path) -> None:
    _, adapter = bert(tmp_path)
    edit(
        adapter / "adapter_model.safetensors",
        lambda tensors: {k: v[:0] if k.endswith("classifier.weight") else v for k, v in tensors.items()},
    )
    with pytest.raises(AdapterError, match=r"'base_model\.model\.classifier\.weight' .* is empty .* ZeRO-3"):
        load_package(adapter)


def test_an_adapter_without_the_head_that_its_base_lacks_is_refused(tmp_path: Path) -> None:
    base, adapter = bert(tmp_path, encoder=True)
    edit(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: value for name, value in tensors.items() if "classifier" not in name},
    )
    with pytest.raises(
        AdapterError, match=r"has weights for 'classifier\.\w+', which BertForSequenceClassification needs"
    ):
        merge_checkpoint(base, load_package(adapter), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("missing", ["classifier", "classifier.weight", "classifier.bias"])
def test_a_head_that_was_trained_but_is_not_in_the_file_is_refused(tmp_path: Path, missing: str) -> None:
    """The base has a head of its own, so the merge would load, and answer with the untrained one, or with half of it."""
    base, adapter = bert(tmp_path)
    edit(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: value for name, value in tensors.items() if missing not in name},
    )
    with pytest.raises(AdapterError, match=r"'classifier' was trained and saved whole .* the adapter is incomplete"):
        merge_checkpoint(base, load_package(adapter), tmp_path / "merged")


def test_a_pooler_that_neither_side_has_is_named(tmp_path: Path) -> None:
    base, adapter = bert(tmp_path, encoder=True)
    edit(base / "model.safetensors", lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    with pytest.raises(
        AdapterError, match=r"'bert\.pooler\.dense\.\w+'.* train with 'bert\.pooler\.dense' in modules_to_save"
    ):
        merge_checkpoint(base, load_package(adapter), tmp_path / "merged")


def test_a_tensor_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    base, adapter = bert(tmp_path)
    added = {"base_model.model.extra.weight": torch.ones(3, 3)}
    edit(adapter / "adapter_model.safetensors", lambda tensors: {**tensors, **added})
    with pytest.raises(
        AdapterError, match=r"saved 'extra\.weight' whole, but BertForSequenceClassification has no such"
    ):
        merge_checkpoint(base, load_package(adapter), tmp_path / "merged")


def test_bookkeeping_of_peft_is_dropped(tmp_path: Path) -> None:
    base, adapter = bert(tmp_path, bias="all")
    assert not [name for name in load_package(adapter).modules_to_save if "original_module" in name]
    got, report = merge_error(T.BertForSequenceClassification, base, adapter, tmp_path / "merged")
    assert got <= 5e-6
    assert report.added == ()


def test_an_embedding_saved_beside_its_own_update_is_base_plus_update(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = save_noisy(T.BertForSequenceClassification(T.BertConfig(**LABELED)), tmp_path / "base")
    model = T.BertForSequenceClassification.from_pretrained(base)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(1.5)  # what was saved differs from the base
    lora = {"task_type": "SEQ_CLS", "target_modules": ["word_embeddings"]}
    adapter = save_adapter_for(model, tmp_path / "adapter", {"save_embedding_layers": True}, **lora)
    got, _ = merge_error(T.BertForSequenceClassification, base, adapter, tmp_path / "merged")
    assert got <= 5e-6
    save_package(load_package(adapter), tmp_path / "again")
    got, _ = merge_error(T.BertForSequenceClassification, base, tmp_path / "again", tmp_path / "merged-again")
    assert got <= 5e-6


def test_a_vit_adapter_of_transformers_4_merges_into_a_base_of_either(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T.ViTConfig(image_size=32, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3)  # fmt: skip
    base = save_noisy(T.ViTForImageClassification(config), tmp_path / "base")
    model = T.ViTForImageClassification.from_pretrained(base)
    adapter = save_adapter_for(
        model, tmp_path / "new", target_modules=["q_proj", "fc2"], modules_to_save=["classifier"]
    )
    merge_checkpoint(base, load_package(adapter), tmp_path / "want")
    old = {
        "vit.layers.": "vit.encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "mlp.fc2": "output.dense",
    }

    def spelled(name: str) -> str:
        for new, former in old.items():
            name = name.replace(new, former)
        return name

    edit(adapter / "adapter_model.safetensors", lambda tensors: {spelled(k): v for k, v in tensors.items()})
    config_file = adapter / "adapter_config.json"
    config_file.write_text(config_file.read_text().replace("q_proj", "query").replace("fc2", "output.dense"))
    merge_checkpoint(base, load_package(adapter), tmp_path / "merged")
    merged = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert merged == (tmp_path / "want" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("method", "leaves"),
    [
        ("gptq", {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16, "g_idx": torch.int32}),
        ("awq", {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16}),
        ("compressed-tensors", {"weight_packed": torch.int32, "weight_scale": torch.float16}),
    ],
)
def test_a_quantized_base_is_refused_as_such(method: str, leaves: dict[str, torch.dtype], tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = save_noisy(T.LlamaForCausalLM(T.LlamaConfig(**TINY)), tmp_path / "base")
    model = T.LlamaForCausalLM.from_pretrained(base)
    adapter = save_adapter_for(model, tmp_path / "adapter", task_type="CAUSAL_LM", target_modules=["q_proj"])

    def quantized(tensors: Tensors) -> Tensors:
        packed = {}
        for name, value in tensors.items():
            path = name.removesuffix(".weight")
            if path.endswith("_proj"):
                packed.update({f"{path}.{leaf}": torch.zeros(4, 4, dtype=dtype) for leaf, dtype in leaves.items()})
            else:
                packed[name] = value
        return packed

    edit(base / "model.safetensors", quantized)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        AdapterError, match=rf"is quantized with {method} \('model\.layers\.0\.self_attn\.q_proj\.\w+'\)"
    ):
        merge_checkpoint(base, load_package(adapter), tmp_path / "merged")


def test_a_grouped_convolution_is_refused_as_such(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, num_labels=3)
    base = save_noisy(T.RegNetForImageClassification(config), tmp_path / "base")
    model = T.RegNetForImageClassification.from_pretrained(base)
    adapter = save_adapter_for(model, tmp_path / "adapter", target_modules=["layer.1.convolution"])
    with pytest.raises(AdapterError, match=r"is a convolution with 2 groups: .* no weight of the base can hold it"):
        merge_checkpoint(base, load_package(adapter), tmp_path / "merged")


def test_attention_whose_projections_are_one_parameter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = T.SiglipVisionConfig(**size, intermediate_size=24)
    base = save_noisy(T.SiglipVisionModel(config), tmp_path / "base")
    model = T.SiglipVisionModel.from_pretrained(base)
    adapter = save_adapter_for(model, tmp_path / "adapter", target_modules=["head.attention", "q_proj"])
    got, _ = pooled_error(base, adapter, tmp_path / "merged")
    assert got <= 5e-6
    save_package(load_package(adapter), tmp_path / "again")
    assert pooled_error(base, tmp_path / "again", tmp_path / "merged-again")[0] <= 5e-6
    with pytest.raises(AdapterError, match="it can be merged, but not mixed or compressed"):
        compress_adapter(load_package(adapter), rank=2)


def test_the_output_projection_of_such_an_attention_alone_has_no_effect(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = save_noisy(T.SiglipVisionModel(T.SiglipVisionConfig(**size, intermediate_size=24)), tmp_path / "base")
    model = T.SiglipVisionModel.from_pretrained(base)
    adapter = save_adapter_for(model, tmp_path / "adapter", target_modules="all-linear")
    got, dropped = pooled_error(base, adapter, tmp_path / "merged")
    assert got <= 5e-6
    assert dropped == ("vision_model.head.attention.out_proj",) or dropped == ("head.attention.out_proj",)


def pooled_error(base: Path, adapter: Path, output: Path) -> tuple[float, tuple[str, ...]]:
    """Merge and compare the pooled vectors of SigLIP with PEFT's; return the error and the dropped modules."""
    from peft import PeftModel

    report = merge_checkpoint(base, load_package(adapter), output)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        reference = PeftModel.from_pretrained(T.SiglipVisionModel.from_pretrained(base), str(adapter)).eval()
        want = reference(pixel_values=pixels).pooler_output
        got = T.SiglipVisionModel.from_pretrained(output).eval()(pixel_values=pixels).pooler_output
    return float((got - want).abs().max() / want.abs().max()), report.dropped


@pytest.mark.parametrize("old", [True, False], ids=["stored-by-transformers-4", "stored-by-transformers-5"])
def test_a_language_model_inside_a_multimodal_wrapper(old: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {**TINY, "head_dim": 16, "num_key_value_heads": 1, "sliding_window": 8}
    vision = {"image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = T.Gemma3Config(text_config=text, vision_config={**vision, "intermediate_size": 24}, mm_tokens_per_image=4)
    base = save_noisy(T.Gemma3ForConditionalGeneration(config), tmp_path / "base")
    if not old:
        edit(
            base / "model.safetensors",
            lambda tensors: {
                name.replace("language_model.model.", "model.language_model.")
                .replace("vision_tower.", "model.vision_tower.", 1)
                .replace("multi_modal_projector.", "model.multi_modal_projector.", 1)
                .replace("model.model.", "model."): value
                for name, value in tensors.items()
            },
        )
    model = T.Gemma3ForConditionalGeneration.from_pretrained(base)
    adapter = save_adapter_for(
        model, tmp_path / "adapter", {"save_embedding_layers": False}, target_modules=["q_proj", "lm_head"]
    )
    got, report = merge_error(T.Gemma3ForConditionalGeneration, base, adapter, tmp_path / "merged")
    assert got <= 5e-6
    assert report.untied == "lm_head"
