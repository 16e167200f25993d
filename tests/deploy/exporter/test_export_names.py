"""Exports of models whose modules have other names on disk, or are adapted without being in any graph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from rmlora.package import load_package, save_package
from rmlora.torch_models import load_adapted
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime.providers import create_session
from tests.helpers.bundles import PROCESSOR
from tests.helpers.cli import fails, run, tokenizer
from tests.helpers.merge_cases import IMAGE, TINY, Case, edit, error, inputs_of, make, outputs_of
from tests.helpers.rarely import rarely

T: Any = transformers
SMALL = {**TINY, "num_labels": 3, "vocab_size": 200}
PICTURE = {**IMAGE, "num_labels": 3}
VIT_OLD = {
    "vit.layers.": "vit.encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "mlp.fc2": "output.dense",
}

IMAGES = [
    Case("swin", lambda: T.SwinForImageClassification(T.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=3)), {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["classifier"]}),
    Case("dinov2-swiglu", lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**{**PICTURE, "mlp_ratio": 2}, use_swiglu_ffn=True)), {"target_modules": ["gate_proj", "up_proj"], "modules_to_save": ["classifier"]}),
    Case("siglip", lambda: T.SiglipForImageClassification(T.SiglipConfig(vision_config=IMAGE, text_config=SMALL, num_labels=3)), {"target_modules": "all-linear", "modules_to_save": ["classifier"]}),
]  # fmt: skip
RESNET = Case("resnet", lambda: T.ResNetForImageClassification(T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)), {"target_modules": ["convolution"], "modules_to_save": ["classifier.1"]})  # fmt: skip
TEXTS = [
    Case("bigbird", lambda: T.BigBirdForSequenceClassification(T.BigBirdConfig(**SMALL, attention_type="original_full")), {"task_type": "SEQ_CLS", "target_modules": "all-linear"}),
    Case("esm", lambda: T.EsmForSequenceClassification(T.EsmConfig(**SMALL, position_embedding_type="rotary", mask_token_id=4)), {"task_type": "SEQ_CLS", "target_modules": "all-linear"}),
]  # fmt: skip


ABSENT = {
    "siglip": tuple(f"vision_model.head.{path}.weight" for path in ("attention.out_proj", "mlp.fc1", "mlp.fc2")),
    "bigbird": ("bert.pooler.weight",),
    "esm": ("esm.contact_head.regression.weight",),
}
"""Case → the adapted weights that its graph does not have."""


def sources(case: Case, directory: Path) -> tuple[Path, Path, Any]:
    """Save base and adapter of ``case``, with a processor beside the base."""
    base, adapter, model_class = make(case, directory)
    if case in (*IMAGES, RESNET):
        processor = {**PROCESSOR, "size": {"height": 32, "width": 32}}
        (base / "preprocessor_config.json").write_text(json.dumps(processor))
    else:
        tokenizer().save_pretrained(base)
    return base, adapter, model_class


def task_flags(case: Case) -> list[str]:
    return ["--task", "image-classification" if case in (*IMAGES, RESNET) else "text-classification"]


@pytest.mark.parametrize("case", [*map(rarely, IMAGES), *map(rarely, TEXTS[1:]), TEXTS[0]], ids=lambda case: case.name)
def test_branches_are_exported_and_equal_peft(case: Case, tmp_path: Path) -> None:
    base, adapter, _ = sources(case, tmp_path)
    bundle = tmp_path / "bundle"
    done = run("export", base, "--mode", "branches", "-a", f"x={adapter}", "-o", bundle, *task_flags(case))
    assert done.code == 0, done.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["verification"]["passed"] is True
    absent = Bundle.open(bundle).lora_inputs().absent
    assert absent == ABSENT.get(case.name, ())
    assert ("Left out" in done.stdout) == bool(absent)
    added = run("adapter", "add", bundle, f"y={adapter}")
    assert added.code == 0, added.stderr
    assert run("verify", bundle).code == 0


def test_a_vit_adapter_of_transformers_4_is_exported(tmp_path: Path) -> None:
    case = Case("vit", lambda: T.ViTForImageClassification(T.ViTConfig(**PICTURE)), {"target_modules": ["q_proj", "fc2"], "modules_to_save": ["classifier"], "rank_pattern": {"fc2": 2}})  # fmt: skip
    base, adapter, model_class = make(case, tmp_path)
    (base / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "size": {"height": 32, "width": 32}}))
    reference = PeftModel.from_pretrained(model_class.from_pretrained(base), str(adapter))
    inputs = inputs_of(reference.get_base_model())
    want = outputs_of(reference, inputs)
    spell_as_transformers_4(adapter)
    model, loaded = load_adapted(base, adapter, task="image-classification")
    assert error(outputs_of(model, inputs), want) <= 1e-6
    assert {module.rank for module in loaded.modules.values()} == {2, 4}
    for mode in ("merged", "branches"):
        task = ("--task", "image-classification")
        done = run("export", base, "--mode", mode, "-a", f"x={adapter}", "-o", tmp_path / mode, *task)
        assert done.code == 0, done.stderr
    added = run("adapter", "add", tmp_path / "branches", f"y={adapter}")
    assert added.code == 0, added.stderr


def spell_as_transformers_4(adapter: Path) -> None:
    def spelled(name: str) -> str:
        for new, old in VIT_OLD.items():
            name = name.replace(new, old)
        return name

    edit(adapter / "adapter_model.safetensors", lambda tensors: {spelled(k): v for k, v in tensors.items()})
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace("q_proj", "query").replace("fc2", "output.dense"))


def test_convolutions_are_exported_and_not_said_to_be_in_int8(tmp_path: Path) -> None:
    base, adapter, _ = sources(RESNET, tmp_path)
    bundle = tmp_path / "bundle"
    done = run("export", base, "-a", adapter, "-o", bundle, *task_flags(RESNET))
    assert done.code == 0, done.stderr
    assert json.loads((bundle / "manifest.json").read_text())["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    words = (
        "export",
        base,
        "--mode",
        "branches",
        "-a",
        f"x={adapter}",
        "-o",
        tmp_path / "branches",
        *task_flags(RESNET),
    )
    fails(3, "a convolution whose windows overlap", *words)
    for precision in ("int8", "int4"):
        words = (
            "export",
            base,
            "-a",
            adapter,
            "-o",
            tmp_path / precision,
            *task_flags(RESNET),
            "--precision",
            precision,
        )
        fails(2, "this model has none but its head: choose fp32 or fp16", *words)
        assert not (tmp_path / precision).exists()


def test_keys_with_the_adapters_name_are_exported(tmp_path: Path) -> None:
    base, adapter, _ = sources(IMAGES[0], tmp_path)
    edit(
        adapter / "adapter_model.safetensors",
        lambda tensors: {k.replace(".weight", ".default.weight") if "lora_" in k else k: v for k, v in tensors.items()},
    )
    done = run("export", base, "-a", adapter, "-o", tmp_path / "bundle", *task_flags(IMAGES[0]))
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("case", [TEXTS[0], rarely(IMAGES[2])], ids=lambda case: case.name)
def test_a_module_that_the_graph_lacks_is_left_out_of_a_merge_into_it(case: Case, tmp_path: Path) -> None:
    base, adapter, model_class = sources(case, tmp_path)
    plain = model_class.from_pretrained(base).eval()
    (tmp_path / "onnx").mkdir()
    inputs = inputs_of(plain)
    inputs.pop("attention_mask", None)
    torch.onnx.export(plain, kwargs=inputs, f=str(tmp_path / "onnx" / "model.onnx"), dynamo=True, verbose=False)
    done = run(
        "merge",
        base,
        adapter,
        "--onnx",
        tmp_path / "onnx" / "model.onnx",
        "-o",
        tmp_path / "out",
        "--no-verify",
        "--json",
    )
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["dropped"]
    reference = PeftModel.from_pretrained(plain, str(adapter))
    want = outputs_of(reference, inputs).numpy()
    session = create_session(tmp_path / "out" / "model.onnx")
    got = session.run(None, {item.name: inputs[item.name].numpy() for item in session.get_inputs()})[0]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_an_embedding_saved_beside_its_update_is_dropped_where_it_equals_the_base(tmp_path: Path) -> None:
    lora = {"task_type": "SEQ_CLS", "target_modules": ["word_embeddings", "query"]}
    case = Case(
        "bert",
        lambda: T.BertForSequenceClassification(T.BertConfig(**SMALL)),
        lora,
        save={"save_embedding_layers": True},
    )
    base, adapter, _ = make(case, tmp_path)
    tokenizer().save_pretrained(base)
    assert "bert.embeddings.word_embeddings.weight" in load_package(adapter).modules_to_save
    bundle = tmp_path / "bundle"
    done = run("export", base, "--mode", "branches", "-a", f"x={adapter}", "-o", bundle)
    assert done.code == 0, done.stderr
    assert run("adapter", "add", bundle, f"y={adapter}").code == 0
    changed = load_package(adapter)
    name = "bert.embeddings.word_embeddings.weight"
    saved = {**changed.modules_to_save, name: np.asarray(changed.modules_to_save[name], np.float32) + 1}
    save_package(replace(changed, modules_to_save=saved), tmp_path / "changed")
    refused = run("adapter", "add", bundle, f"z={tmp_path / 'changed'}")
    assert refused.code != 0
    assert "saved in full" in refused.stderr


@pytest.mark.parametrize("mode", ["merged", "branches"])
def test_an_adapter_of_another_width_is_refused_by_its_shape(mode: str, tmp_path: Path) -> None:
    lora = {"task_type": "SEQ_CLS", "target_modules": ["query"]}
    for width in (16, 32):
        config = T.BertConfig(**{**SMALL, "hidden_size": width})
        (tmp_path / f"{width}").mkdir()
        sources(
            Case("bert", lambda config=config: T.BertForSequenceClassification(config), lora), tmp_path / f"{width}"
        )  # type: ignore[misc]
    words = ("export", tmp_path / "32" / "base", "--mode", mode, "-a", f"x={tmp_path / '16' / 'adapter'}")
    fails(3, "has 16 inputs and 16 outputs, but the base's weight has shape [32, 32]", *words, "-o", tmp_path / "no")
