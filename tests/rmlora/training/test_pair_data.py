"""Reading pairs of texts: which columns they are in, and that all rows have the same form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rmlora.errors import ConfigError, InputError
from rmlora.tasks import get_task
from rmlora.text_pair import TextPair
from rmlora.training.data import Columns, load_inputs, load_split, load_splits
from rmlora.training.settings import TrainSettings
from rmlora.training.table import Reading

TASK = get_task("text-classification")


def table(path: Path, names: str, *rows: str) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([line.split("|") for line in (names, *rows)])
    return str(path)


@pytest.mark.parametrize(
    ("names", "first", "second"),
    [
        ("sentence1|sentence2|label", "sentence1", "sentence2"),
        ("hypothesis|premise|label", "premise", "hypothesis"),
        ("sentence|question|label", "question", "sentence"),
        ("question2|question1|label", "question1", "question2"),
        ("sentence_A|sentence_B|label", "sentence_A", "sentence_B"),
        ("query|document|label", "query", "document"),
        ("text|text_pair|label", "text", "text_pair"),
    ],
)
def test_common_pairs_are_recognized_and_named(tmp_path: Path, names: str, first: str, second: str) -> None:
    source = table(
        tmp_path / "d.csv", names, *("|".join(f"{name} {row}" for name in names.split("|")) for row in range(2))
    )
    data = load_split(TASK, source, Columns(), reading=Reading())
    assert data.inputs == [TextPair(f"{first} {row}", f"{second} {row}") for row in range(2)]
    assert data.notes == (
        f"The rows of {source} are pairs of '{first}' and '{second}': name one with --text-column for single texts.",
    )
    assert load_inputs(TASK, source, Columns(), form="pair") == data.inputs


def test_columns_are_chosen(tmp_path: Path) -> None:
    source = table(tmp_path / "d.csv", "b|a|class", "1|2|x", "3|4|y")
    data = load_split(TASK, source, Columns("a", None, "b"))
    assert (data.inputs, data.notes) == ([TextPair("2", "1"), TextPair("4", "3")], ())
    premises = table(tmp_path / "e.csv", "premise|hypothesis|label", "1|2|x", "3|4|y")
    assert load_split(TASK, premises, Columns("hypothesis")).inputs == ["2", "4"]


def test_a_pair_may_be_a_list_in_one_column(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps({"text": [f"p{row}", "h"], "label": row % 2}) for row in range(4)))
    assert load_split(TASK, str(path), Columns()).inputs[1] == TextPair("p1", "h")


@pytest.mark.parametrize(
    ("names", "row", "columns", "message"),
    [
        (
            "premise|hypothesis|text|label",
            "a|b|c|x",
            Columns("text", None, "none"),
            "has no column 'none'.*change --pair-column",
        ),
        (
            "question|sentence|review|label",
            "a|b|c|x",
            Columns(),
            "has the columns 'question' and 'sentence' and 'review'",
        ),
        ("premise|hypothesis|sentence1|sentence2|label", "a|b|c|d|x", Columns(), "not clear which columns"),
        ("a|b|label", "a|b|x", Columns(None, None, "b"), "name the first one with --text-column"),
        ("a|b|label", "a|b|x", Columns("a", None, "a"), "both name 'a'"),
        ("premise|hypothesis|label", "a| |x", Columns(), "Line 2 of .* has no 'hypothesis'"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, names: str, row: str, columns: Columns, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_split(TASK, table(tmp_path / "d.csv", names, row), columns)


def test_rows_of_two_forms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows: list[Any] = [["a", "b"], "c", ["d", "e"]]
    path.write_text("\n".join(json.dumps({"text": value, "label": "x"}) for value in rows))
    with pytest.raises(InputError, match=r"Line 2 of .* has a single text in 'text'.*single texts or pairs, not both"):
        load_split(TASK, str(path), Columns())
    path.write_text(json.dumps({"text": ["a", "b", "c"], "label": "x"}))
    with pytest.raises(InputError, match="has a list in 'text'"):
        load_split(TASK, str(path), Columns())


def test_an_adapter_that_does_not_say_gets_pairs_only_where_nothing_else_can_be_meant(tmp_path: Path) -> None:
    qnli = table(tmp_path / "qnli.csv", "question|sentence|label", "a|b|x", "c|d|y")
    for read in (load_split, load_inputs):
        with pytest.raises(InputError, match="choose the texts with --text-column, and the second text"):
            read(TASK, qnli, Columns())
    nli = table(tmp_path / "nli.csv", "premise|hypothesis|label", "a|b|x", "c|d|y")
    assert load_split(TASK, nli, Columns()).inputs == load_inputs(TASK, nli, Columns()) == [("a", "b"), ("c", "d")]


def test_data_has_the_form_of_the_adapter(tmp_path: Path) -> None:
    qnli = table(tmp_path / "qnli.csv", "question|sentence|label", "a|b|x", "c|d|y")
    with pytest.raises(InputError, match="has the columns 'question' and 'sentence': choose the texts"):
        load_split(TASK, qnli, Columns(), form="text")
    with pytest.raises(InputError, match="holds pairs where the adapter takes single texts"):
        load_split(TASK, qnli, Columns("question", None, "sentence"), form="text")
    with pytest.raises(InputError, match="holds single texts where the adapter takes pairs"):
        load_split(TASK, qnli, Columns("question"), form="pair")
    single = table(tmp_path / "single.csv", "text|label", "a|x", "c|y")
    with pytest.raises(InputError, match=r"single\.csv holds single texts where the training data takes pairs"):
        load_splits(TASK, qnli, single, None, columns=Columns(), validation_fraction=0.2, seed=1)


def test_copies_of_a_pair_stay_on_one_side(tmp_path: Path) -> None:
    rows = [f"p{number}|h{number}|{'xy'[number % 2]}" for number in range(10)] * 3
    source = table(tmp_path / "d.csv", "premise|hypothesis|label", *rows)
    splits = load_splits(TASK, source, None, None, columns=Columns(), validation_fraction=0.3, seed=1)
    assert not set(splits.train[0]) & set(splits.validation[0])


def test_other_tasks_have_no_pairs(tmp_path: Path) -> None:
    source = table(tmp_path / "d.csv", "sentence1|sentence2", "a|b")
    with pytest.raises(InputError, match="has none of the columns text"):
        load_inputs(get_task("feature-extraction"), source, Columns())
    with pytest.raises(InputError, match="--pair-column is for text-classification"):
        load_inputs(get_task("feature-extraction"), source, Columns("sentence1", None, "sentence2"))
    with pytest.raises(ConfigError, match="--pair-column is for pairs of texts, but the task is image-classification"):
        TrainSettings(base="b", train="t", output=tmp_path / "o", task="image-classification", pair_column="b")
