"""Training of answers in a text: SQuAD's forms, windows, metrics, and what is refused before training."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForQuestionAnswering

from rmlora.config import RMLoRAConfig
from rmlora.errors import ConfigError, InputError
from rmlora.package import load_package
from rmlora.question_inputs import QuestionInputs
from rmlora.storage import read_json
from rmlora.text_pair import TextPair
from rmlora.training.answer_cells import Answer
from rmlora.training.data import Columns
from rmlora.training.question_data import read_questions
from rmlora.training.question_report import report_answers
from rmlora.training.question_rows import QuestionRows, span_loss
from rmlora.training.run import train
from rmlora.training.settings import TrainSettings
from tests.helpers.questions import LONG, make_question_base, pair_tokenizer, question_rows
from tests.helpers.taggers import write_rows


def settings(directory: Path, **changes: Any) -> TrainSettings:
    """Return the settings of a short run on questions that can be learned."""
    base = directory / "base"
    if not base.exists():
        make_question_base(base)
        write_rows(directory / "train.jsonl", question_rows(96, unanswerable=0.25))
        write_rows(directory / "test.jsonl", question_rows(24, seed=1, unanswerable=0.25))
    data = str(directory / "train.jsonl")
    chosen: dict[str, Any] = {
        "base": str(base), "train": data, "validation": data, "test": str(directory / "test.jsonl"),
        "output": directory / "adapter", "task": "question-answering", "epochs": 5, "batch_size": 16,
        "max_length": 32, "learning_rate": 0.02, "rmlora": RMLoRAConfig(rank=4, active_rank=4),
        **changes,
    }  # fmt: skip
    return TrainSettings(**chosen)


def test_answers_are_learned_and_recorded(tmp_path: Path) -> None:
    result = train(settings(tmp_path))
    assert result.metrics["test"]["f1"] > 0.6 and set(result.metrics["test"]) == {"f1", "exact_match", "loss"}
    adapter = load_package(result.output)
    assert adapter.task == "question-answering" and adapter.no_answer is True and adapter.input_form == "pair"
    assert adapter.peft_config["task_type"] == "QUESTION_ANS"
    assert any("qa_outputs" in name for name in adapter.modules_to_save)
    report = read_json(result.output / "evaluation.json", what="Evaluation")["test"]
    assert report["with_answer"]["examples"] + report["without_answer"]["examples"] == 24
    assert result.metrics["examples"] == {"train": 96, "validation": 96, "test": 24}


def test_the_loss_is_that_of_the_model_itself(tmp_path: Path) -> None:
    base = make_question_base(tmp_path / "base", head=True)
    model = AutoModelForQuestionAnswering.from_pretrained(base).eval()
    right = [(Answer("kitchen", 12),), ()]
    rows = QuestionRows(
        [TextPair("what is red ?", "the desk in kitchen is red"), TextPair("what is red ?", LONG)], right,
        QuestionInputs(), pair_tokenizer(), 40,
    )  # fmt: skip
    assert rows.owners == [0, *[1] * (len(rows) - 1)] and len(rows) > 3
    batch = rows.collate([rows[index] for index in range(len(rows))])
    labels = batch.pop("labels")
    with torch.inference_mode():
        own = model(**batch, start_positions=labels[:, 0], end_positions=labels[:, 1])
        assert torch.allclose(span_loss(own, labels), own.loss, atol=1e-6)
        halves = [span_loss(_part(own, part), labels[part], 2 * len(labels)) for part in (slice(2), slice(2, None))]
        assert torch.allclose(sum(halves), own.loss, atol=1e-6)
    first, last = labels[0].tolist()
    assert rows.windows[0].arrays["input_ids"][first : last + 1].tolist() == [pair_tokenizer().vocab["kitchen"]]
    assert (labels[1:] == 0).all()


def _part(output: Any, part: slice) -> Any:
    return type(output)(start_logits=output.start_logits[part], end_logits=output.end_logits[part])


SQUAD = {
    "version": "2.0",
    "data": [
        {
            "title": "lamps",
            "paragraphs": [
                {
                    "context": "The desk lamp is red.",
                    "qas": [
                        {"id": "1", "question": "What is red?", "answers": [{"text": "desk lamp", "answer_start": 4}]},
                        {"id": "2", "question": "What is blue?", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        }
    ],
}
ROW = {"question": "What is red?", "context": "The desk lamp is red."}


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["desk lamp"], "answer_start": [4]},
        {"text": "desk lamp", "answer_start": 4},
        [{"text": "desk lamp", "start": 4}],
        "desk lamp",
        ["desk lamp"],
        {"text": [" desk lamp "], "answer_start": [3]},
        {"text": ["desk lamp"], "answer_start": [5]},  # SQuAD's own files have such rows
        '{"text": ["desk lamp"], "answer_start": [4]}',  # as csv files have it
    ],
)
def test_answers_in_every_usual_form(answers: Any, tmp_path: Path) -> None:
    data = read_questions(str(write_rows(tmp_path / "rows.jsonl", [{**ROW, "answers": answers}])), Columns())
    assert data.questions[0].answers == (Answer("desk lamp", 4),)


def test_a_text_of_the_context_is_an_answer_even_if_it_is_json(tmp_path: Path) -> None:
    rows = [{"question": "What?", "context": 'It says ["red"].', "answers": '["red"]'}]
    data = read_questions(str(write_rows(tmp_path / "rows.jsonl", rows)), Columns())
    assert data.questions[0].answers == (Answer('["red"]', 8),)


def test_answers_of_a_parquet_file(tmp_path: Path) -> None:
    rows = [{**ROW, "answers": {"text": ["desk lamp", "lamp"], "answer_start": [4, 9]}}]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    data = read_questions(str(tmp_path / "rows.parquet"), Columns())
    assert data.questions[0].answers == (Answer("desk lamp", 4), Answer("lamp", 9))


@pytest.mark.parametrize("impossible", [True, "True", 1])
def test_answers_to_impossible_questions_are_only_plausible(impossible: Any, tmp_path: Path) -> None:
    rows = [{**ROW, "answers": "lamp", "is_impossible": impossible}, {**ROW, "answers": "red", "is_impossible": False}]
    data = read_questions(str(write_rows(tmp_path / "rows.jsonl", rows)), Columns())
    assert [len(item.answers) for item in data.questions] == [0, 1]


@pytest.mark.parametrize("answers", [{"text": [], "answer_start": []}, [], "", None])
def test_questions_without_answer(answers: Any, tmp_path: Path) -> None:
    rows = [{**ROW, "answers": answers}, {**ROW, "answers": "lamp"}]
    data = read_questions(str(write_rows(tmp_path / "rows.jsonl", rows)), Columns())
    assert [len(item.answers) for item in data.questions] == [0, 1]


def test_files_of_squad(tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD))
    data = read_questions(str(tmp_path / "squad.json"), Columns())
    assert [(item.pair.first, [a.start for a in item.answers]) for item in data.questions] == [
        ("What is red?", [4]), ("What is blue?", []),
    ]  # fmt: skip
    paragraph = SQUAD["data"][0]["paragraphs"][0]  # type: ignore[index]
    for broken in ({"qas": paragraph["qas"]}, {**paragraph, "qas": ["What is red?"]}):
        document = {"data": [{"paragraphs": [broken]}]}
        (tmp_path / "squad.json").write_text(json.dumps(document))
        with pytest.raises(InputError, match="lacks something of SQuAD's format"):
            read_questions(str(tmp_path / "squad.json"), Columns())


def test_a_text_that_begins_like_deep_json_is_a_text(tmp_path: Path) -> None:
    rows = [{**ROW, "answers": "[" * 100_000}]
    with pytest.raises(InputError, match="which does not occur in its context"):
        read_questions(str(write_rows(tmp_path / "rows.jsonl", rows)), Columns())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "answers": "chair"}, "Line 1 of .* has the answer 'chair', which does not occur in its context"),
        ({**ROW, "answers": 7}, "where a text belongs"),
        ({**ROW, "answers": {"text": ["desk"], "answer_start": [1, 2]}}, "answer_start for each text"),
        ({**ROW, "answers": {"text": ["desk"], "answer_start": [-1]}}, "counts characters of the context from 0"),
        ({**ROW, "answers": {"text": ["desk"], "answer_start": [math.inf]}}, "counts characters of the context from 0"),
        ({**ROW, "question": " ", "answers": "lamp"}, "has no question or no context"),
        ({**ROW, "context": ["The"], "answers": "lamp"}, "has list as its context"),
        ({"question": "What?", "answers": "lamp"}, "It is not clear which columns"),
        (ROW, "has none of the columns answers"),
        ({**ROW, "answers": ""}, "No question of .* has an answer"),
    ],
)
def test_what_cannot_be_learned(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "bad.jsonl", [row]))
    with pytest.raises(InputError, match=message):
        train(settings(tmp_path, train=data, validation=data, test=None))
    assert not (tmp_path / "adapter").exists()


def test_factors_start_along_the_gradient_of_the_answers(tmp_path: Path) -> None:
    config = RMLoRAConfig(rank=2, active_rank=2, init="gradient")
    assert train(settings(tmp_path, epochs=1, test=None, rmlora=config)).steps > 0


def test_what_is_not_learned_is_said(tmp_path: Path) -> None:
    start = LONG.index("desk")
    rows = [
        {"question": "which light?", "context": LONG, "answers": {"text": ["desk lamp"], "answer_start": [start]}},
        {"question": "which light?", "context": LONG, "answers": {"text": [LONG[:120]], "answer_start": [0]}},
    ]
    data = str(write_rows(tmp_path / "long.jsonl", rows * 2))
    out = io.StringIO()
    train(
        settings(tmp_path, train=data, validation=data, test=None, epochs=1, max_length=24),
        console=Console(file=out, width=1000),
    )
    assert "are read in" in out.getvalue() and "windows of up to 24 tokens" in out.getvalue()
    assert "2 answers of" in out.getvalue() and "fit into no window" in out.getvalue()


@pytest.mark.parametrize("answer", ["lamp\u0301", "\u200blamp\u200b"])
def test_characters_without_token_do_not_cut_an_answer(answer: str) -> None:
    context = f"the {answer} is red"
    rows = QuestionRows(
        [TextPair("what?", context)], [[Answer(answer, 4)]], QuestionInputs(), pair_tokenizer(), max_length=24
    )
    first, last = rows[0]["labels"]
    assert first == last and rows.unlearned == 0
    assert pair_tokenizer().convert_ids_to_tokens([rows[0]["input_ids"][first]]) == ["lamp"]


def test_questions_about_one_context_are_split_off_together(tmp_path: Path) -> None:
    rows = [{**ROW, "context": f"The desk lamp is red. {i // 5}", "answers": "lamp"} for i in range(50)]
    made = settings(tmp_path, train=str(write_rows(tmp_path / "rows.jsonl", rows)), validation=None, test=None)
    from rmlora.tasks import get_task
    from rmlora.training.question_training import QuestionTraining

    splits = QuestionTraining(made, get_task("question-answering")).load().splits
    contexts = [{item.pair.second for item in split.questions} for split in splits.values()]
    assert not contexts[0] & contexts[1] and sum(map(len, contexts)) == 10


def test_figures_are_those_of_squad() -> None:
    right = [(Answer("the desk lamp", 0), Answer("lamp", 9)), (Answer("red", 0),), (), ()]
    report = report_answers(["Lamp.", "red lamp", "", "red"], right)
    assert report.answered == {"examples": 2, "exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}
    assert report.unanswerable == {"examples": 2, "exact_match": 0.5, "f1": 0.5} and report.given == 3
    np.testing.assert_allclose([report.exact_match, report.f1], [0.5, (1 + 2 / 3 + 1) / 4])


def test_settings_of_other_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="best_metric must be one of f1, exact_match, loss for question-answering"):
        settings(tmp_path, best_metric="accuracy")
    with pytest.raises(ConfigError, match="--labels is for"):
        settings(tmp_path, labels=("a", "b"))
    assert settings(tmp_path, max_length=None).token_limit == 384


def test_windows_are_as_long_as_the_base_reads(tmp_path: Path) -> None:
    answer = {"text": ["blue"], "answer_start": [LONG.index("blue")]}
    rows = [{"question": "which light?", "context": LONG, "answers": answer}] * 4
    made = settings(tmp_path, epochs=1, max_length=None, output=tmp_path / "long")
    write_rows(tmp_path / "train.jsonl", rows)
    shown = io.StringIO()
    result = train(made, console=Console(file=shown, width=200))
    assert "The base reads at most 40 tokens: --max-length 384 is lowered to that." in shown.getvalue()
    assert "windows of up to 40 tokens" in shown.getvalue()
    assert load_package(result.output).metadata["training"]["settings"]["max_length"] == 40
