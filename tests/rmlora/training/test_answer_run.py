"""Training runs of tiny models with encoder and decoder: package, PEFT, merge, generated answers, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from rmlora.package import load_package
from rmlora.training.generate_answers import generate_answers
from tests.helpers.chats import write_rows
from tests.helpers.cli import fails, run
from tests.helpers.decoders import byte_tokenizer, decoder_base
from tests.helpers.models import save_base

WORDS = ("red", "blue", "green")
ROWS = [{"prompt": f"{word} {number} ?", "completion": word[0]} for number in range(16) for word in WORDS]
SIZES: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}


def answering_base(name: str, directory: Path) -> Path:
    """Save a tiny T5 or BART whose tokenizer ends every text as those of real ones do."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.pad_token_id = 0
    vocabulary = len(tokenizer)
    if name == "t5":
        model: Any = T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocabulary,
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=1,
                num_heads=2,
                dropout_rate=0.0,
                **SIZES,
            )
        )
    else:
        model = BartForConditionalGeneration(
            BartConfig(
                vocab_size=vocabulary, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
                bos_token_id=1, forced_eos_token_id=None, dropout=0.0, **SIZES,
            )
        )  # fmt: skip
    save_base(model, directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["t5", "bart"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_base(request.param, tmp_path_factory.mktemp(request.param) / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "train.jsonl", ROWS)


def words(base: Path, data: Path, output: Path, *more: object) -> list[Any]:
    return [
        "train", "--task", "text2text-generation", "--base", base, "--train", data, "-o", output, "--rank", "4",
        "--batch-size", "8", "--epochs", "2", "--learning-rate", "2e-2", *more,
    ]  # fmt: skip


def test_it_learns_to_answer_and_peft_and_the_merged_model_agree(base: Path, data: Path, tmp_path: Path) -> None:
    done = run(*words(base, data, tmp_path / "adapter", "--test", data, "--metric", "exact_match", "--max-new-tokens",
                      "4", "--epochs", "30", "--json"))  # fmt: skip
    assert done.code == 0, done.stderr
    scores = json.loads(done.stdout)["metrics"]["test"]
    assert list(scores) == ["exact_match", "loss", "perplexity"] and scores["exact_match"] > 0.9
    package = load_package(tmp_path / "adapter")
    assert package.task == "text2text-generation" and package.metadata["end_tokens"] == [2]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    ids, asked = torch.tensor([[101, 3, 99, 2]]), torch.tensor([[0, 120, 2]])
    plain: Any = AutoModelForSeq2SeqLM.from_pretrained(base)
    adapted: Any = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    expected = adapted(input_ids=ids, decoder_input_ids=asked).logits
    merge = run("merge", base, tmp_path / "adapter", "-o", tmp_path / "merged")
    assert merge.code == 0, merge.stderr
    merged: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(input_ids=ids, decoder_input_ids=asked).logits, expected, rtol=1e-4, atol=1e-4)
    said = "is an adapter for text2text-generation, which is not exported: its decoder also attends"
    fails(3, said, "export", base, "--adapter", tmp_path / "adapter", "-o", tmp_path / "no")


def test_the_loss_is_that_of_the_model_and_accumulation_changes_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    same = ["--init", "peft", "--no-group-by-length", "--epochs", "1", "--method", "lora"]
    for name, more in {"plain": [], "accumulated": ["--batch-size", "4", "--gradient-accumulation", "2"]}.items():
        done = run(*words(base, data, tmp_path / name, *same, *more))
        assert done.code == 0, done.stderr
    plain = load_package(tmp_path / "plain")
    for path, module in load_package(tmp_path / "accumulated").modules.items():
        want = torch.tensor(plain.modules[path].lora_B)
        torch.testing.assert_close(torch.tensor(module.lora_B), want, rtol=1e-3, atol=1e-5)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    write_rows(tmp_path / "one.jsonl", rows[:1])
    done = run(*words(base, data, tmp_path / "again", *same, "--validation", tmp_path / "one.jsonl", "--json"))
    assert done.code == 0, done.stderr
    tokenizer: Any = byte_tokenizer()
    ids = torch.tensor([[*tokenizer(rows[0]["prompt"])["input_ids"], 2]])
    labels = torch.tensor([[*tokenizer(rows[0]["completion"])["input_ids"], 2]])
    model: Any = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), str(tmp_path / "again")).eval()
    theirs = model(input_ids=ids, labels=labels).loss.item()
    assert json.loads(done.stdout)["metrics"]["validation"]["loss"] == pytest.approx(theirs, rel=1e-4)


def test_answers_of_a_batch_are_those_of_single_prompts(base: Path) -> None:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(base)
    prompts = [[101, 3, 99, 2], [100, 2], [104, 105, 106, 107, 108, 2]]

    def answer(asked: list[list[int]]) -> list[str]:
        return generate_answers(
            model, asked, lambda tokens: " ".join(map(str, tokens)), end=[2], padding=0, batch_size=8, max_new_tokens=5
        )

    assert answer(prompts) == [answer([prompt])[0] for prompt in prompts]
    theirs = model.generate(input_ids=torch.tensor([prompts[0]]), max_new_tokens=5, do_sample=False, num_beams=1)
    assert answer(prompts)[0].split() == [str(token) for token in theirs[0, 1:].tolist() if token not in (0, 2)]


@pytest.mark.parametrize(
    ("row", "more", "said"),
    [
        ({"text": "A plain text."}, [], "holds plain texts without answers, but a model with encoder and decoder learns"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, [], "holds messages, but"),
        ({"prompt": "a", "completion": "b" * 40}, ["--max-length", "20"], "have answers of more than 20 tokens"),
        ({"prompt": "a", "completion": "b"}, ["--packing"], "--packing is for text-generation, but the task is"),
    ],
)  # fmt: skip
def test_what_it_cannot_learn_is_refused_before_training(
    row: dict[str, Any], more: list[str], said: str, base: Path, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row, row, row])
    done = run(*words(base, file, tmp_path / "adapter", "--validation", file, *more))
    assert done.code != 0 and said in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "adapter").exists()


def test_long_prompts_are_cut_and_long_answers_left_out_when_asked(base: Path, tmp_path: Path) -> None:
    rows = [*ROWS[:12], {"prompt": "a" * 40, "completion": "b"}, {"prompt": "a", "completion": "b" * 40}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    done = run(*words(base, file, tmp_path / "adapter", "--max-length", "20", "--skip-long", "--epochs", "1"))
    assert done.code == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert f"rmlora-deploy merge {base} {tmp_path / 'adapter'} --output {tmp_path / 'adapter-merged'}" in said
    assert "Left out 1 row: line 14" in said and "1 prompt of" in said and "cut at the end: raise --max-length" in said


def test_answers_are_ended_also_where_the_tokenizer_does_not_end_texts(base: Path, data: Path, tmp_path: Path) -> None:
    unended = shutil.copytree(base, tmp_path / "base")
    byte_tokenizer().save_pretrained(unended)
    done = run(*words(unended, data, tmp_path / "adapter", "--test", data, "--metric", "exact_match", "--max-new-tokens",
                      "4", "--epochs", "30", "--json"))  # fmt: skip
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["test"]["exact_match"] > 0.9


def test_answers_longer_than_the_positions_are_refused_before_training(data: Path, tmp_path: Path) -> None:
    bart = words(answering_base("bart", tmp_path / "bart"), data, tmp_path / "adapter")
    fails(2, "with --max-new-tokens 65", *bart, "--metric", "exact_match", "--max-new-tokens", "65")
    gpt2 = words(decoder_base("gpt2", tmp_path / "gpt2"), data, tmp_path / "adapter", "--task", "text-generation")
    fails(2, "with --max-new-tokens 256", *gpt2, "--metric", "exact_match", "--max-new-tokens", "256")
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_does_not_say_where_answers_begin_or_end_is_refused(data: Path, tmp_path: Path) -> None:
    base = answering_base("t5", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "decoder_start_token_id"}))
    fails(3, "does not say with which token an answer begins", *words(base, data, tmp_path / "adapter"))
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(base)
    fails(3, "has no end-of-text token, so no answer could be ended", *words(base, data, tmp_path / "adapter"))
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "adapter.run").exists()


def test_a_causal_base_is_refused(data: Path, tmp_path: Path) -> None:
    causal = decoder_base("llama", tmp_path / "base")
    done = run(*words(causal, data, tmp_path / "adapter"))
    assert done.code != 0 and "cannot be loaded for text2text-generation" in " ".join(done.stderr.split()), done.stderr
