"""SmolLM2-135M: its GGUF file as a base, its template's answer tokens, and a short run from data to generated text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.assets import smollm2, smollm2_gguf
from benchmarks.realdata.intents import home_commands
from benchmarks.realdata.split_files import write_splits
from rmlora.base import resolve_base
from rmlora.package import load_package
from rmlora.torch_models import load_adapted
from rmlora.training.answer_tokens import PromptFormat
from rmlora.training.conversations import Conversation
from tests.helpers.cli import run
from tests.helpers.models import adapt, lora_config, output, relative_error

pytestmark = pytest.mark.e2e

CHAT = (
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And a haiku?\n"},
    {"role": "assistant", "content": "\n Café, naïve 🙂\nends here. "},
)


def test_a_gguf_base_is_dequantized_once_and_merges(tmp_path: Path) -> None:
    base = resolve_base(smollm2_gguf())
    assert resolve_base(smollm2_gguf()) == base
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = lora_config("llama", target_modules=["q_proj", "v_proj"], modules_to_save=None, task_type="CAUSAL_LM")
    adapted = adapt(model, config, size=0.02)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    done = run("merge", smollm2_gguf(), tmp_path / "adapter", "-o", tmp_path / "merged")
    assert done.code == 0, done.stderr
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "merged")
    inputs = dict(tokenizer("The capital of Iceland is", return_tensors="pt"))
    expected = output(adapted, inputs)
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert relative_error(output(merged, inputs), expected) <= 1e-5
    assert isinstance(adapted, PeftModel)


def test_only_answers_and_their_end_of_turn_are_learned_with_its_template() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2())
    form = PromptFormat(tokenizer, "SmolLM2")
    (row,) = form.encode(Conversation(1, CHAT))
    text = tokenizer.apply_chat_template(list(CHAT), tokenize=False)
    assert tokenizer.decode(row.ids) == text.rstrip()
    begins = [i for i, answer in enumerate(row.answer) if answer and not row.answer[i - 1]]
    ends = [i + 1 for i, (now, after) in enumerate(pairwise([*row.answer, False])) if now and not after]
    learned = [tokenizer.decode(row.ids[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    assert learned == ["4<|im_end|>", f"{CHAT[3]['content']}<|im_end|>"]
    assert row.ids[: begins[1]] == tokenizer.apply_chat_template(
        list(CHAT[:3]), tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]  # fmt: skip
    assert form.prompt(Conversation(1, CHAT)) == row.ids[: begins[1]]


def test_commands_of_a_home_are_json_with_templates_held_out(tmp_path: Path) -> None:
    examples = home_commands()
    assert len(examples) > 2000 and len({example.input for example in examples}) == len(examples)
    by_sentence = {example.input: json.loads(str(example.label)) for example in examples}
    assert all("intent" in command for command in by_sentence.values())
    directory = write_splits("home", tmp_path / "home", limit=600)
    asked = {
        name: {json.loads(line)["messages"][1]["content"] for line in (directory / f"{name}.jsonl").open()}
        for name in ("train", "validation", "test")
    }
    template = {example.input: example.group for example in examples}
    held_out = [{template[sentence] for sentence in sentences} for sentences in asked.values()]
    assert not held_out[0] & held_out[1] and not held_out[0] & held_out[2] and len(asked["train"]) == 600


def test_a_short_run_on_the_gguf_file_and_its_bundle(tmp_path: Path) -> None:
    data = write_splits("home", tmp_path / "home", limit=40)
    lines = (data / "test.jsonl").read_text().splitlines()[:2]
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    done = run(
        "train", "--task", "text-generation", "--base", smollm2_gguf(), "--train", data / "train.jsonl",
        "--validation", tmp_path / "test.jsonl", "-o", tmp_path / "adapter", "--batch-size", "4", "--epochs", "1",
        "--learning-rate", "2e-3", "--precision", "bf16", "--metric", "json", "--max-new-tokens", "12", "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    scores = json.loads(done.stdout)["metrics"]["validation"]
    assert scores["loss"] < 1.5  # the base: 2.2
    assert len(load_package(tmp_path / "adapter").modules) == 30 * 7
    base: Any = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)
    ids = torch.tensor([[1, 4093, 198, 2683, 335, 260, 1420, 2, 198]])
    ours = load_adapted(smollm2(), tmp_path / "adapter")[0](input_ids=ids).logits
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    made = run(
        "export", smollm2_gguf(), "--mode", "branches", "-a", f"intents={tmp_path / 'adapter'}", "-o", tmp_path / "bundle",
        "--precision", "int8", "--data", f"intents={tmp_path / 'test.jsonl'}", "--metric", "json", "--max-new-tokens", "16", "--json",
    )  # fmt: skip
    assert made.code == 0, made.stderr
    report = json.loads(made.stdout)["verification"]
    assert report["base"]["bit_equal"] and report["mixed"]["passed"]
    learned = report["adapters"]["intents"]
    assert (
        learned["evaluation"]["examples"] == 2
        and learned["perplexity"]["onnx"] < 1.05 * learned["perplexity"]["pytorch"]
    )
    words = ["turn on the lights", "--system", "Answer with the command as JSON.", "--max-new-tokens", "12", "--json"]
    texts = [
        json.loads(run("generate", tmp_path / "bundle", *words, *who).stdout)["text"]
        for who in ([], ["--adapter", "intents"])
    ]
    assert texts[1].startswith("{") and not texts[0].startswith("{")
