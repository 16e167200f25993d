"""Adapters of tasks that are not exported are refused by name, whatever --task says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from rmlora.package import load_package
from tests.helpers.answers import make_adapter, make_base
from tests.helpers.cli import fails, run, tokenizer
from tests.helpers.models import TOKENS, save_adapter, save_base
from tests.helpers.servers import ask, serving

OTHERS = {
    "choices": (BertForMultipleChoice, None, None, "an adapter for multiple-choice"),
    "masks": (BertForMaskedLM, None, None, "an adapter for fill-mask"),
}
"""Kind → model class, PEFT's task type, modules saved whole, and what the refusal says."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("other-tasks")
    base = make_base(directory / "base", "one label")
    adapter = make_adapter(base, directory / "adapter")
    done = run("export", base, "-a", f"one={adapter}", "-o", directory / "bundle", "--mode", "branches", "--no-verify")
    assert done.code == 0, done.stderr
    return directory / "bundle"


@pytest.mark.parametrize("kind", OTHERS)
def test_adapters_of_other_tasks_are_refused(kind: str, bundle: Path, tmp_path: Path) -> None:
    model_class, task_type, saved, message = OTHERS[kind]
    model = model_class(
        BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=40, num_labels=3, **TOKENS,
        )
    )  # fmt: skip
    base = save_base(model, tmp_path / "base")
    tokenizer().save_pretrained(base)
    config = LoraConfig(r=2, target_modules=["query"], task_type=task_type, modules_to_save=saved)
    adapter = save_adapter(get_peft_model(model, config), tmp_path / "adapter")
    assert load_package(adapter).task not in (None, "text-classification")
    for flags in ((), ("--task", "text-classification"), ("--task", "feature-extraction")):
        for mode in ("merged", "branches"):
            fails(3, message, "export", base, "-a", adapter, "-o", tmp_path / "no", "--mode", mode, *flags)
    assert not (tmp_path / "no").exists()
    fails(
        3, f"is for {load_package(adapter).task}, the bundle for text-classification", "adapter", "add", bundle, adapter
    )
    with serving({"bundle": bundle}, adapter_dirs=(tmp_path,)) as server:
        refused = ask(server.url, "/v1/load_lora_adapter", {"lora_name": "other", "lora_path": "adapter"})
        assert refused.status == 400 and "task" in refused.message


@pytest.mark.parametrize(("task_type", "saved"), [("TOKEN_CLS", None), (None, ["classifier"])])
def test_adapters_for_tokens_are_not_used_for_texts(
    task_type: str | None, saved: list[str] | None, bundle: Path, tmp_path: Path
) -> None:
    settings = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=40,
        num_labels=3, **TOKENS,
    )  # fmt: skip
    model = BertForTokenClassification(settings)
    base = save_base(model, tmp_path / "base")
    tokenizer().save_pretrained(base)
    config = LoraConfig(r=2, target_modules=["query"], task_type=task_type, modules_to_save=saved)
    adapter = save_adapter(get_peft_model(model, config), tmp_path / "adapter")
    assert load_package(adapter).task == "token-classification"
    for task in ("text-classification", "feature-extraction"):
        message = f"is for token-classification and cannot be used for {task}"
        fails(3, message, "export", base, "-a", adapter, "-o", tmp_path / "no", "--task", task)
    fails(3, "is for token-classification, the bundle for text-classification", "adapter", "add", bundle, adapter)


def test_a_head_of_another_task_is_refused_where_nothing_is_recorded(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "one label")
    model = BertForSequenceClassification.from_pretrained(base)
    model.qa_outputs = torch.nn.Linear(16, 2)
    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["qa_outputs"])
    adapter = save_adapter(get_peft_model(model, config), tmp_path / "adapter")
    text = (adapter / "adapter_config.json").read_text()
    (adapter / "adapter_config.json").write_text(text.replace("BertForSequenceClassification", "Wrapped"))
    message = "a head for answers in a text: it cannot be used for text-classification"
    fails(3, message, "export", base, "-a", adapter, "-o", tmp_path / "no", "--task", "text-classification")
