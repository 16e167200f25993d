"""Instruction data in all its forms, and the sentences for rows that cannot be used."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rmlora.errors import InputError
from rmlora.training.conversations import Conversations, TextColumns, read_conversations, usual_names
from rmlora.training.language_data import load_conversations
from rmlora.training.sources import open_table
from rmlora.training.table import Reading
from tests.helpers.chats import write_rows

USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def read(path: Path, skip_empty: bool = False, **columns: str) -> Conversations:
    reading = Reading(skip_empty=skip_empty)
    chosen = TextColumns(**columns)
    return read_conversations(open_table(str(path), usual_names(), reading), path.name, chosen, reading)


def rows(tmp_path: Path, *items: Any) -> Path:
    return write_rows(tmp_path / "data.jsonl", items)


@pytest.mark.parametrize(
    ("item", "form", "prompt", "answer"),
    [
        ({"messages": [USER, ASSISTANT]}, "messages", "", "b"),
        ({"messages": [USER, ASSISTANT], "prompt": "x", "completion": "y", "text": "z"}, "messages", "", "b"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "messages", "", "b"),
        ({"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}, "messages", "", "b"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "messages", "", "b"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages", "", ""),
        ({"messages": [{"role": "system", "content": ""}, USER, ASSISTANT]}, "messages", "", "b"),
        ({"prompt": "a", "completion": "b"}, "completion", "a", "b"),
        ({"Prompt": "a", "Response": "b"}, "completion", "a", "b"),
        ({"question": "a", "answer": "b"}, "completion", "a", "b"),
        ({"instruction": "a", "input": "", "output": "b", "text": "whole"}, "completion", "a", "b"),
        ({"instruction": "a", "input": "more", "output": "b"}, "completion", "a\n\nmore", "b"),
        ({"input": "a", "output": "b"}, "completion", "a", "b"),
        ({"text": "a b"}, "text", "", "a b"),
    ],
)
def test_forms_are_recognized(item: Any, form: str, prompt: str, answer: str, tmp_path: Path) -> None:
    data = read(rows(tmp_path, item))
    (row,) = data.rows
    assert (data.form, row.prompt, row.answer, row.number) == (form, prompt, answer, 1)
    assert [turn["role"] for turn in row.as_messages()][-1] == "assistant"


def test_chosen_columns_win(tmp_path: Path) -> None:
    file = rows(tmp_path, {"messages": [USER, ASSISTANT], "prompt": "x", "completion": "y", "text": "z", "more": "m"})
    assert read(file, text="more").rows[0].answer == "m"
    assert read(file, prompt="more", completion="text").rows[0].prompt == "m"
    assert read(file, completion="text").rows[0].answer == "z"
    assert any("not used: 'messages'" in note or "not used" in note for note in read(file, text="more").notes)


def test_messages_in_a_csv_file_are_json(tmp_path: Path) -> None:
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages", "id"], [json.dumps([USER, ASSISTANT]), "1"]])
    assert read(tmp_path / "data.csv").rows[0].answer == "b"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"messages": [USER, ASSISTANT]}, {"messages": [USER]}], "Line 2 of data.jsonl ends with a message of 'user'"),
        ([{"messages": [ASSISTANT]}], "Line 1 of data.jsonl has an answer, but nothing that is answered"),
        ([{"messages": [{"role": "robot", "content": "a"}, ASSISTANT]}], "a message 1 with the role 'robot': the roles are"),
        ([{"messages": [{"role": "user", "content": 3}, ASSISTANT]}], "has a number as its message 1"),
        ([{"messages": [{"role": "user", "content": " "}, ASSISTANT]}], "a message 1 of 'user' that is empty"),
        ([{"messages": [{"role": "system"}, USER, ASSISTANT]}], "Line 1 of data.jsonl has a message 1 of 'system' without content"),
        ([{"messages": [USER, {"role": "assistant", "text": "b"}]}], "has a message 2 of 'assistant' without content"),
        ([{"messages": [{"role": "user", "content": None, "tool_calls": [1]}, ASSISTANT]}], "message 1 of 'user' without content"),
        ([{"messages": "[{"}], "has messages that are not valid JSON"),
        ([{"messages": "[" * 100_000}], "has messages that are not valid JSON"),
        ([{"messages": ["hello"]}], "has messages that are no list of {role, content}"),
        ([{"messages": 3}], "has messages that are no list of {role, content}"),
        ([{"prompt": "a", "completion": {"intent": "x"}}], "has an object as its completion, where a text belongs"),
        ([{"prompt": ["a"], "completion": "b"}], "has a list as its prompt"),
        ([{"text": True}], "has true or false as its text"),
        ([{"prompt": "a", "completion": 1}, {"prompt": "a", "completion": "b"}, {"prompt": 2, "completion": "b"}],
         "Line 1 of data.jsonl has a number as its completion, where a text belongs: write it as one text. Other lines with faults: 3."),
        ([{"prompt": "a", "completion": ""}], "Line 1 of data.jsonl has no prompt or no completion: .* --skip-empty"),
        ([{"prompt": "a", "label": "b"}], "data.jsonl has none of: a column messages; .* --messages-column"),
    ],
)  # fmt: skip
def test_faulty_rows_are_named(items: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(rows(tmp_path, *items))


def test_empty_rows_are_left_out_when_asked(tmp_path: Path) -> None:
    file = rows(tmp_path, {"prompt": "a", "completion": "b"}, {"prompt": "", "completion": "b"}, {"prompt": "a"})
    with pytest.raises(InputError, match="^Lines 2 and 3 of data.jsonl have no prompt or no completion"):
        read(file)
    data = read(file, skip_empty=True)
    assert [row.number for row in data.rows] == [1]
    assert data.notes == ("Left out 2 rows of data.jsonl: lines 2 and 3 have no prompt or no completion.",)
    with pytest.raises(InputError, match="has no row with both prompt and completion"):
        read(rows(tmp_path, {"prompt": "a", "completion": None}), skip_empty=True)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"messages": "chat"}, "has no column 'chat' .* change --messages-column"),
        ({"prompt": "a"}, "has no other half for 'a' .* pass --completion-column"),
        ({"completion": "a"}, "has no other half for 'a' .* pass --prompt-column"),
    ],
)
def test_chosen_columns_must_be_there(columns: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(rows(tmp_path, {"a": "x", "b": "y"}), **columns)


def test_rows_that_ask_the_same_stay_on_one_side(tmp_path: Path) -> None:
    items = [{"prompt": f"p{number % 20}", "completion": f"c{number}"} for number in range(60)]
    source = str(rows(tmp_path, *items))

    def load(seed: int, **more: Any) -> dict[str, Conversations]:
        sources = {"train": source, "validation": None, "test": None, **more}
        return load_conversations(sources, TextColumns(), Reading(), validation_fraction=0.2, seed=seed)

    splits = load(0)
    asked = {name: {row.prompt for row in data.rows} for name, data in splits.items()}
    assert not asked["train"] & asked["validation"] and len(asked["validation"]) == 4
    assert sum(len(data.rows) for data in splits.values()) == 60
    assert load(0) == splits != load(1)
    assert list(load(0, test=source)) == ["train", "validation", "test"]
    one = str(write_rows(tmp_path / "one.jsonl", [{"prompt": "a", "completion": "b"}] * 3))
    with pytest.raises(InputError, match="asks only one thing"):
        load(0, train=one)
