"""QLoRA: an adapter trained on a base rounded to 4 bits, with bitsandbytes, and merged into the base as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rmlora.package import load_package
from rmlora.torch_models import load_adapted
from tests.helpers.chats import chat_base, chat_tokenizer, conversations, write_rows
from tests.helpers.cli import fails, run, run_process
from tests.rmlora.training.test_language_run import words


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("four")
    tokenizer = chat_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=1, eos_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")
    write_rows(directory / "chats.jsonl", conversations(36))
    return directory


def test_a_base_in_4_bits_is_trained_on_and_merged_into_as_it_is(made: Path) -> None:
    flags = ("--load-in-4bit", "--epochs", "8", "--json")
    done = run(*words(made / "base", made / "chats.jsonl", made / "adapter", *flags))
    assert done.code == 0, done.stderr
    history = json.loads((made / "adapter" / "evaluation.json").read_text())["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    package = load_package(made / "adapter")
    assert package.base_precision == "nf4" and len(package.modules) == 14
    merged = run("merge", made / "base", made / "adapter", "-o", made / "merged")
    assert merged.code == 0, merged.stderr
    assert "trained on the base rounded to 4 bits (nf4)" in " ".join(merged.stdout.split())
    ids = torch.tensor([[2, 8, 5, 4]])
    ours: Any = AutoModelForCausalLM.from_pretrained(made / "merged", dtype=torch.float32)
    theirs = load_adapted(made / "base", made / "adapter")[0]
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def test_the_base_is_really_rounded(made: Path) -> None:
    from rmlora.tasks import get_task
    from rmlora.torch_models import load_task_model
    from rmlora.training.language_training import LanguageTraining
    from rmlora.training.settings import TrainSettings

    task = get_task("text-generation")
    settings = TrainSettings(str(made / "base"), "x", made / "o", task=task.name, load_in_4bit=True)
    model: Any = load_task_model(made / "base", task, (), **LanguageTraining(settings, task).load_options()).model
    layer = model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == "Linear4bit" and layer.weight.dtype == torch.uint8
    assert model.lm_head.weight.dtype == torch.float32


def test_what_cannot_be_rounded_is_refused(made: Path, tmp_path: Path) -> None:
    command = words(made / "base", made / "chats.jsonl", tmp_path / "no", "--load-in-4bit")
    missing = run_process(*command, without=("bitsandbytes",))
    assert missing.code == 4 and "qlora" in missing.stderr and "Traceback" not in missing.stderr
    narrow = words(chat_base(tmp_path / "narrow"), made / "chats.jsonl", tmp_path / "no", "--load-in-4bit")
    if not torch.cuda.is_available():  # bitsandbytes' CPU kernel wants 32 outputs
        fails(2, "bitsandbytes cannot compute the base", *narrow)
    fails(2, "--load-in-4bit is for text-generation", "train", "--base", made / "base", "--train", "x.csv", "-o", tmp_path / "o",
          "--load-in-4bit")  # fmt: skip


def test_a_base_stored_in_4_bits_is_refused_before_training(made: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BitsAndBytesConfig

    rounding = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model: Any = AutoModelForCausalLM.from_pretrained(made / "base", quantization_config=rounding, device_map="cpu")
    model.save_pretrained(tmp_path / "rounded")
    AutoTokenizer.from_pretrained(made / "base").save_pretrained(tmp_path / "rounded")
    fails(3, "quantized with bitsandbytes", *words(tmp_path / "rounded", made / "chats.jsonl", tmp_path / "no"))
    fails(
        3,
        "quantized with bitsandbytes",
        *words(tmp_path / "rounded", made / "chats.jsonl", tmp_path / "no", "--load-in-4bit"),
    )
