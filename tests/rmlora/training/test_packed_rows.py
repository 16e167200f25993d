"""Packed batches: the loss and gradient of padded ones on fewer rows, and refusal where a model would mix examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, TrainingArguments

from rmlora.errors import ConfigError
from rmlora.package import load_package
from rmlora.training.ignored import IGNORED
from rmlora.training.language_rows import LanguageRows
from rmlora.training.language_trainer import LanguageTrainer
from rmlora.training.packed_rows import PackedRows, check_packing
from tests.helpers.chats import chat_base, conversations, write_rows
from tests.helpers.cli import fails, run
from tests.helpers.decoders import DECODERS, decoder_base
from tests.rmlora.training.test_language_run import words
from tests.rmlora.training.test_language_trainer import adapted, rows

SMALL = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip


def packed(data: LanguageRows) -> PackedRows:
    return PackedRows.of([data[index] for index in range(len(data))], 1)


def run_of(tmp_path: Path, collator: Any) -> LanguageTrainer:
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=8, use_cpu=True, report_to=[],
                                  disable_tqdm=True, remove_unused_columns=False, label_names=["labels"])  # fmt: skip
    data = rows()
    return LanguageTrainer(model=adapted(), args=arguments, train_dataset=data, eval_dataset=data,
                           data_collator=data.collate, train_collator=collator)  # fmt: skip


def test_every_token_is_in_one_row_with_its_position_and_label() -> None:
    data = packed(rows())
    chosen = [data[index] for index in range(len(data))]
    batch = data.collate(chosen)
    width = max(len(row["input_ids"]) for row in chosen)
    assert batch["input_ids"].shape[1] == width and len(batch["input_ids"]) < len(chosen)
    assert (batch["labels"] != IGNORED).sum() == data.learned
    begins = (batch["position_ids"] == 0).sum()
    padding = batch["input_ids"].numel() - sum(len(row["input_ids"]) for row in chosen)
    assert len(chosen) <= begins <= len(chosen) + padding
    assert (
        batch["labels"][batch["position_ids"] == 0] == IGNORED
    ).all()  # nothing of the example before is predicted from


def test_loss_and_gradient_are_those_of_padded_rows(tmp_path: Path) -> None:
    data = rows()
    chosen = [data[index] for index in range(len(data))]
    found = []
    for collate in (data.collate, packed(data).collate):
        run = run_of(tmp_path, collate)
        model: Any = run.model
        loss = run.compute_loss(model, dict(collate(chosen)))
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-7)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-7)


def test_only_the_logits_that_are_needed_are_computed(tmp_path: Path) -> None:
    data = packed(rows())
    run = run_of(tmp_path, data.collate)
    batch = data.collate([data[0], data[1], data[len(data) - 1]])
    asked = run._with_needed_logits(dict(batch))
    needed = int((batch["labels"][:, 1:] != IGNORED).any(0).sum())
    assert len(asked["logits_to_keep"]) == needed + 1 < batch["labels"].shape[1]


def test_the_trainer_packs_what_it_trains_on_and_nothing_else(tmp_path: Path) -> None:
    run = run_of(tmp_path, packed(rows()).collate)
    trained, evaluated = next(iter(run.get_train_dataloader())), next(iter(run.get_eval_dataloader()))
    assert "position_ids" in trained and "attention_mask" not in trained
    assert "attention_mask" in evaluated and len(evaluated["input_ids"]) == 8


def test_a_packed_run_ends_where_the_padded_one_does(tmp_path: Path) -> None:
    base = chat_base(tmp_path / "base")
    data = write_rows(tmp_path / "chats.jsonl", conversations(36))
    for name, flags in (("padded", ("--no-group-by-length",)), ("packed", ("--packing",))):
        done = run(*words(base, data, tmp_path / name, *flags))
        assert done.code == 0, done.stderr
    plain = load_package(tmp_path / "padded").modules
    for path, module in load_package(tmp_path / "packed").modules.items():
        torch.testing.assert_close(torch.tensor(module.lora_B), torch.tensor(plain[path].lora_B), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3", "mistral", "gpt2", "olmo"])
def test_architectures_that_keep_examples_apart_are_packed(name: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(decoder_base(name, tmp_path / "base"), dtype=torch.float32)
    check_packing(model, name)
    assert name in DECODERS


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("MambaConfig", {"state_size": 4}),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}),
        ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    ],
)
def test_architectures_that_mix_examples_are_refused(config: str, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, config)(**SMALL, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with pytest.raises(ConfigError, match="does not keep packed examples apart"):
        check_packing(model, "base")


def test_packing_is_for_language_models(tmp_path: Path) -> None:
    fails(2, "--packing is for text-generation", "train", "--base", tmp_path, "--train", "x.csv", "-o", tmp_path / "o",
          "--packing")  # fmt: skip
