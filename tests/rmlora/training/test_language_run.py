"""Training runs of a tiny causal language model: package, PEFT, merge, resuming, and errors before any training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel

from rmlora.package import load_package
from rmlora.torch_models import load_adapted
from rmlora.training.conversations import Conversation
from tests.helpers.chats import CHATML, chat_base, chat_tokenizer, conversations, write_rows
from tests.helpers.cli import environment, fails, run
from tests.rmlora.training.short_run import assert_equal

SHORT = ["--rank", "4", "--batch-size", "8", "--epochs", "3", "--learning-rate", "2e-2"]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("chats") / "train.jsonl", conversations(48))


@pytest.fixture(scope="module")
def trained(chat_model: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    output = tmp_path_factory.mktemp("trained") / "adapter"
    done = run(*words(chat_model, chats, output, "--test", chats, "--metric", "exact_match", "--max-new-tokens", "8",
                      "--epochs", "20", "--json"))  # fmt: skip
    assert done.code == 0, done.stderr
    return output, json.loads(done.stdout)


def words(base: Path, data: Path, output: Path, *more: object) -> list[Any]:
    return ["train", "--task", "text-generation", "--base", base, "--train", data, "-o", output, *SHORT, *more]


def test_a_run_leaves_a_complete_package(trained: tuple[Path, Any], chat_model: Path) -> None:
    output, answer = trained
    for split in ("validation", "test"):
        scores = answer["metrics"][split]
        assert list(scores) == ["exact_match", "loss", "perplexity"]
        assert scores["perplexity"] == pytest.approx(torch.tensor(scores["loss"]).exp().item(), rel=1e-4)
    assert answer["metrics"]["test"]["exact_match"] > 0.5  # chance is a third
    package = load_package(output)
    assert package.task == "text-generation" and package.labels is None and not package.modules_to_save
    assert not any("lm_head" in path or "embed" in path for path in package.modules)
    assert len(package.modules) == 2 * 7
    metadata = package.metadata
    assert metadata["architecture"] == "LlamaForCausalLM"
    assert (metadata["prompt_format"], metadata["end_tokens"], metadata["max_length"]) == ("chat", [3], 1024)
    assert metadata["chat_template"].startswith("sha256:")
    assert json.loads((output / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert {path.name for path in output.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "evaluation.json", "rmlora.json", "training.png",
    }  # fmt: skip
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert len(evaluation["test"]["answers"]) == 5 and evaluation["kept"].startswith("Kept epoch")
    assert {"prompt", "expected", "generated"} == set(evaluation["test"]["answers"][0])
    assert {"step", "epoch", "loss", "perplexity"} == set(evaluation["history"][0])


def test_inspect_shows_task_and_figures(trained: tuple[Path, Any], chat_model: Path) -> None:
    done = run("inspect", trained[0], "--base", chat_model)
    assert done.code == 0, done.stderr
    for part in ("text-generation", "exact match", "perplexity", "the weights it was trained on"):
        assert part in " ".join(done.stdout.split()), done.stdout


def test_peft_and_the_merged_checkpoint_give_the_same_logits(
    trained: tuple[Path, Any], chat_model: Path, tmp_path: Path
) -> None:
    ids = torch.tensor([[2, 15, 19, 4, 20, 5, 3, 19]])
    base: Any = AutoModelForCausalLM.from_pretrained(chat_model)
    plain = base(input_ids=ids).logits
    theirs = PeftModel.from_pretrained(base, str(trained[0])).eval()(input_ids=ids).logits
    ours = load_adapted(chat_model, trained[0])[0](input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not torch.allclose(theirs, plain, atol=1e-2)
    done = run("merge", chat_model, trained[0], "-o", tmp_path / "merged")
    assert done.code == 0, done.stderr
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(input_ids=ids).logits, theirs, rtol=1e-4, atol=1e-5)
    with safe_open(tmp_path / "merged" / "model.safetensors", "np") as file:
        assert "lm_head.weight" not in set(file.keys())  # tied to the embeddings, as in the base
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == CHATML


def test_the_end_names_the_command_that_works(chat_model: Path, chats: Path, tmp_path: Path) -> None:
    done = run(*words(chat_model, chats, tmp_path / "adapter", "--epochs", "1", "--metric", "json"))
    assert done.code == 0, done.stderr
    output = done.stdout + done.stderr
    assert f"rmlora-deploy export {chat_model} --adapter {tmp_path / 'adapter'} --output" in output
    assert "equal JSON 0.0000" in output and "expected" in output and "generated" in output


def test_a_resumed_run_ends_with_the_same_tensors(chat_model: Path, chats: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for output in (whole, parts):
        assert run(*words(chat_model, chats, output)).code == 0
    last = max((tmp_path / "parts.run").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    (last / "trainer_state.json").unlink()
    done = run(*words(chat_model, chats, parts, "--overwrite"))
    assert done.code == 0, done.stderr
    assert_equal(whole, parts)


def test_checkpointing_and_accumulation_change_nothing(chat_model: Path, chats: Path, tmp_path: Path) -> None:
    same = ["--init", "peft", "--no-group-by-length", "--epochs", "1"]
    for name, more in {
        "plain": [], "checkpointed": ["--gradient-checkpointing"],
        "accumulated": ["--batch-size", "4", "--gradient-accumulation", "2"],
    }.items():  # fmt: skip
        done = run(*words(chat_model, chats, tmp_path / name, *same, *more))
        assert done.code == 0, done.stderr
    plain = load_package(tmp_path / "plain").modules
    for name in ("checkpointed", "accumulated"):
        for path, module in load_package(tmp_path / name).modules.items():
            torch.testing.assert_close(
                torch.tensor(module.lora_B), torch.tensor(plain[path].lora_B), rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize("form", ["completion", "text"])
def test_other_forms_of_data_train_without_a_template(form: str, tmp_path: Path) -> None:
    base = chat_base(tmp_path / "base", None)
    rows = conversations(24)
    pairs = [Conversation(1, tuple(row["messages"])) for row in rows]
    asked = [pair.messages[0]["content"] for pair in pairs]
    if form == "completion":
        items = [{"prompt": f"{a} ", "completion": p.answer} for a, p in zip(asked, pairs, strict=True)]
    else:
        items = [{"text": f"{a} {p.answer}"} for a, p in zip(asked, pairs, strict=True)]
    done = run(*words(base, write_rows(tmp_path / "data.jsonl", items), tmp_path / "adapter"))
    assert done.code == 0, done.stderr
    metadata = load_package(tmp_path / "adapter").metadata
    assert (metadata["prompt_format"], metadata["chat_template"]) == ("raw", None)


def test_an_adapter_of_plain_texts_continues_them_whatever_the_template(chat_model: Path, tmp_path: Path) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"{a} b c {a}"} for a in "defghij"])
    done = run(*words(chat_model, texts, tmp_path / "adapter"))
    assert done.code == 0, done.stderr
    metadata = load_package(tmp_path / "adapter").metadata
    assert (metadata["prompt_format"], metadata["chat_template"]) == ("raw", None)


def test_what_cannot_be_trained_is_refused_first(chat_model: Path, chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "no"
    bare = chat_base(tmp_path / "bare", None)
    fails(3, "has no chat template that turns them into text", *words(bare, chats, out))
    faulty = write_rows(
        tmp_path / "faulty.jsonl", [*conversations(9), {"messages": [{"role": "user", "content": "a"}]}]
    )
    fails(3, f"Line 10 of {faulty} ends with a message of 'user'", *words(chat_model, faulty, out))
    fails(
        3,
        "have no token of their answer within the first 9 tokens",
        *words(chat_model, chats, out, "--max-length", "9"),
    )
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "b"), ("user", "c d e f"), ("assistant", "d"))
    ]
    long = write_rows(tmp_path / "long.jsonl", [{"messages": turns}])
    cut = ("--validation", long, "--metric", "json", "--max-length", "24")
    fails(3, "No last answer of", *words(chat_model, chats, out, *cut))
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "a b c"}, {"text": "b c d"}])
    fails(2, "holds plain texts without any", *words(chat_model, texts, out, "--metric", "exact_match"))
    bert = BertLMHeadModel(
        BertConfig(vocab_size=21, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=1)
    )
    bert.save_pretrained(tmp_path / "bert")
    chat_tokenizer().save_pretrained(tmp_path / "bert")
    fails(3, "is no causal language model", *words(tmp_path / "bert", chats, out))
    headless = tmp_path / "headless"
    untied = chat_base(tmp_path / "untied", tied=False)
    AutoModel.from_pretrained(untied).save_pretrained(headless)
    AutoTokenizer.from_pretrained(untied).save_pretrained(headless)
    fails(3, "has no weights for 'lm_head', so it is no language model", *words(headless, chats, out))
    assert not out.exists() and not (tmp_path / "no.run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label-column", "x"], "token-classification, question-answering, but the task is text-generation: leave it out, or choose another"),
        (["--labels", "a,b"], "--labels is for text-classification"),
        (["--best-metric", "accuracy"], "best_metric must be one of loss, exact_match, json, rougeL for text-generation"),
        (["--best-metric", "json"], "pass --metric json too"),
        (["--task", "text-classification", "--metric", "json"], "--metric is for text-generation, text2text-generation, but the"),
        (["--task", "text-classification", "--raw"], "--raw is for text-generation"),
        (["--task", "text-classification", "--best-metric", "rougeL"], "best_metric must be one of accuracy, macro_f1"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
    ],
)  # fmt: skip
def test_settings_of_other_tasks_are_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    fails(2, message, *words(tmp_path / "base", tmp_path / "data.jsonl", tmp_path / "no", *flags))


@pytest.mark.rare
def test_two_processes_equal_one_with_the_same_global_batch(chat_model: Path, chats: Path, tmp_path: Path) -> None:
    same = [
        "--no-group-by-length",
        "--init",
        "peft",
        "--metric",
        "exact_match",
        "--max-new-tokens",
        "4",
        "--validation",
        chats,
    ]
    done = run(*words(chat_model, chats, tmp_path / "one", *same, "--json"))
    assert done.code == 0, done.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29741"]
    command = ["-m", "rmlora_deploy", *words(chat_model, chats, tmp_path / "two", *same, "--batch-size", "4", "--json")]
    both = subprocess.run(
        [*launcher, *map(str, command)],
        env=environment(CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    alone, together = json.loads(done.stdout), json.loads(both.stdout[both.stdout.index("{") :])
    assert alone["steps"] == together["steps"]
    assert together["metrics"]["validation"] == pytest.approx(alone["metrics"]["validation"], rel=1e-4)
    ours = load_package(tmp_path / "one").modules
    for path, module in load_package(tmp_path / "two").modules.items():
        torch.testing.assert_close(torch.tensor(module.lora_B), torch.tensor(ours[path].lora_B), rtol=1e-3, atol=1e-5)
