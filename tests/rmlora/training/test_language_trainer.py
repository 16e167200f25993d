"""Loss over the answers, exact perplexity, generated answers, and the metrics of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import GenerationConfig, TrainingArguments

from rmlora.config import RMLoRAConfig
from rmlora.training.answer_metrics import score_answers
from rmlora.training.answer_tokens import EncodedRow, PromptFormat
from rmlora.training.conversations import Conversation
from rmlora.training.generate_answers import generate_answers
from rmlora.training.ignored import IGNORED
from rmlora.training.language_rows import LanguageRows
from rmlora.training.language_trainer import GroupedLanguageTrainer, LanguageTrainer, answer_loss
from tests.helpers.chats import chat_tokenizer, conversations, tiny_llama

NO_TOKEN = 10_000


def adapted() -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), RMLoRAConfig(rank=4, active_rank=2).to_peft(task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def rows(count: int = 11) -> LanguageRows:
    form = PromptFormat(chat_tokenizer(), "base")
    encoded = [row for item in conversations(count) for row in form.encode(Conversation(1, tuple(item["messages"])))]
    more = [EncodedRow([4, *range(5, 5 + n)], [False, *[True] * n], 1) for n in (1, 6, 9)]
    return LanguageRows([*encoded, *more], padding=1)


def trainer(tmp_path: Path, kind: type[LanguageTrainer] = LanguageTrainer, **options: Any) -> LanguageTrainer:
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, per_device_eval_batch_size=4, use_cpu=True, report_to=[],
        disable_tqdm=True, remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    data = rows()
    return kind(
        model=adapted(), args=arguments, train_dataset=data, eval_dataset=data, data_collator=data.collate, **options
    )


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    model: Any = run.model
    data = rows()
    batch = data.collate([data[index] for index in range(8, 14)])
    whole = model(**batch)
    torch.testing.assert_close(answer_loss(whole, batch["labels"]), whole.loss)
    torch.testing.assert_close(run.compute_loss(model, dict(batch)), whole.loss)
    assert run._keeps_logits
    few = run._with_needed_logits(batch)
    assert few["logits_to_keep"] == batch["labels"].shape[1]  # a row of plain text begins at once
    chats = data.collate([data[0], data[1]])
    assert run._with_needed_logits(chats)["logits_to_keep"] == 3  # what precedes the answer, the answer, its end


def test_the_evaluated_loss_is_the_mean_over_all_tokens(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    model: Any = run.model
    data, total, tokens = rows(), 0.0, 0
    for index in range(len(data)):
        batch = data.collate([data[index]])
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(
                model(**batch).logits[0, :-1], batch["labels"][0, 1:], reduction="none", ignore_index=IGNORED
            )
        total, tokens = total + float(losses.sum()), tokens + int((batch["labels"] != IGNORED).sum())
    assert tokens == data.learned
    metrics = run.evaluate()
    assert metrics["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(2.718281828 ** (total / tokens), rel=1e-5)


def test_generation_is_measured_at_the_end_or_at_every_evaluation(tmp_path: Path) -> None:
    asked: list[str] = []

    def scores(split: str) -> dict[str, float]:
        asked.append(split)
        return {"exact_match": 0.5}

    run = trainer(tmp_path, scores=scores)
    assert "eval_exact_match" not in run.evaluate()
    assert run.predict(rows(), metric_key_prefix="test").metrics["test_exact_match"] == 0.5
    run = trainer(tmp_path, GroupedLanguageTrainer, scores=scores, at_every_evaluation=True)
    assert run.evaluate()["eval_exact_match"] == 0.5
    assert asked == ["test", "validation"]


def test_answers_in_a_padded_batch_are_those_of_one_prompt() -> None:
    model, tokenizer = adapted(), chat_tokenizer()
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    model.get_base_model().generation_config = GenerationConfig(repetition_penalty=9.0, do_sample=True, temperature=3.0)
    prompts = [[2, 15, 19, *range(4, 4 + length)] for length in (1, 7, 3, 5, 2)]
    options: dict[str, Any] = {"end": [NO_TOKEN], "padding": 1, "max_new_tokens": 6}
    together = generate_answers(model, prompts, decode, batch_size=3, **options)
    alone = [generate_answers(model, [prompt], decode, batch_size=1, **options)[0] for prompt in prompts]
    assert together == alone
    for prompt, answer in zip(prompts, together, strict=True):
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    kept: Any = model.get_base_model().generation_config
    assert kept.repetition_penalty == 9.0


def test_an_answer_ends_at_an_end_token() -> None:
    model = adapted()
    prompt = [2, 15, 19, 4]
    first = int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    told: dict[str, Any] = {"padding": 1, "batch_size": 1, "max_new_tokens": 9}
    (whole,) = generate_answers(model, [prompt], str, end=[NO_TOKEN], **told)
    assert len(json.loads(whole)) == 9
    (answer,) = generate_answers(model, [prompt], str, end=[3, first], **told)
    assert answer == "[]", "the token that ends an answer is not part of it"


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "scores"),
    [
        ("exact_match", " a b\n", "a b", {"exact_match": 1.0}),
        ("exact_match", "a  b", "a b", {"exact_match": 0.0}),
        ("json", '{"b": 1, "a": [2]}', '{"a":[2],"b":1}', {"json": 1.0, "json_valid": 1.0}),
        ("json", '{"a": 2}', '{"a": 1}', {"json": 0.0, "json_valid": 1.0}),
        ("json", '{"a": 1', '{"a": 1}', {"json": 0.0, "json_valid": 0.0}),
        ("json", "null", "null", {"json": 1.0, "json_valid": 1.0}),
        ("json", "[" * 100_000, "[]", {"json": 0.0, "json_valid": 0.0}),
        ("rougeL", "the cat sat", "the cat sat down", {"rougeL": 6 / 7}),
        ("rougeL", "", "a", {"rougeL": 0.0}),
    ],
)  # fmt: skip
def test_metrics_of_answers(metric: Any, answer: str, reference: str, scores: dict[str, float]) -> None:
    assert score_answers(metric, [answer], [reference]) == pytest.approx(scores)
