"""Reading pairs, scored pairs and triplets: which columns are meant, what is refused, and the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rmlora.errors import ConfigError, InputError
from rmlora.training.embedding_columns import EmbeddingColumns, find_columns
from rmlora.training.embedding_data import load_embedding_data, read_embedding_data
from rmlora.training.embedding_problem import EMBEDDING_PROBLEMS
from rmlora.training.table import Reading, Table
from tests.helpers.similar_texts import pairs, scored_pairs, triplets, write_lines

Chosen = EmbeddingColumns
NONE = Chosen()


def table(*names: str) -> Table:
    return Table({name: ["text"] for name in names}, 1)


@pytest.mark.parametrize(
    ("names", "chosen", "expected"),
    [
        (("sentence1", "sentence2", "score"), NONE, Chosen("sentence1", "sentence2", None, "score")),
        (("id", "Sentence1", "Sentence2", "Label"), NONE, Chosen("Sentence1", "Sentence2", None, "Label")),
        (("sentence_A", "sentence_B", "relatedness_score"), NONE, Chosen("sentence_A", "sentence_B", None, "relatedness_score")),
        (("anchor", "positive"), NONE, Chosen("anchor", "positive")),
        (("question", "answer"), NONE, Chosen("question", "answer")),
        (("query", "positive", "negative"), NONE, Chosen("query", "positive", "negative")),
        (("a", "b", "c"), Chosen("a", "b"), Chosen("a", "b")),
        (("premise", "hypothesis", "label"), Chosen(score="label"), Chosen("premise", "hypothesis", None, "label")),
        (("premise", "hypothesis", "score"), NONE, Chosen("premise", "hypothesis", None, "score")),
        (("a", "b", "c"), Chosen("a", "b", score="c"), Chosen("a", "b", None, "c")),
        (("a", "b", "score"), Chosen("a", "b"), Chosen("a", "b", None, "score")),
        (("anchor", "positive", "negative", "score"), Chosen(score="score"), Chosen("anchor", "positive", None, "score")),
        (("anchor", "positive", "negative_1", "negative_2"), Chosen(negative="negative_2"), Chosen("anchor", "positive", "negative_2")),
    ],
)  # fmt: skip
def test_columns_are_recognized(names: tuple[str, ...], chosen: Chosen, expected: Chosen) -> None:
    assert find_columns(table(*names), chosen, "data.csv") == expected


@pytest.mark.parametrize(
    ("names", "chosen", "message"),
    [
        (("x", "y"), NONE, "It is not clear which columns of data.csv hold the two texts"),
        (("query", "answer", "question1", "question2"), NONE, "they could be 'query' and 'answer' or 'question1' and 'question2'"),
        (("a", "b"), Chosen("a"), "name both of them, or neither"),
        (("a", "b"), Chosen("a", "a"), "both name 'a': name two columns"),
        (("a", "b"), Chosen("a", "c"), "has no column 'c'"),
        (("a", "b"), Chosen("a", "b", "b"), "'b' of data.csv is meant to be two columns of a row: name another one with --negative"),
        (("a", "b"), Chosen("a", "b", None, "a"), "'a' of data.csv is meant to be two .*: name another one with --label-column"),
        (("premise", "hypothesis", "label"), NONE, "'label' beside 'premise' and 'hypothesis' .* is mostly one of three classes"),
        (("query", "answer", "score", "label"), NONE, "choose the scores with --label-column"),
        (("query", "answer", "negative", "score"), NONE, "choose what is learned with --negative-column or --label-column"),
        (("anchor", "positive", "score"), NONE, "pass --label-column score to learn scores, or remove that column"),
        (("anchor", "positive", "negative_1"), NONE, "one negative for a row is learned: choose it with --negative-column"),
    ],
)  # fmt: skip
def test_ambiguous_columns_are_refused(names: tuple[str, ...], chosen: Chosen, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_columns(table(*names), chosen, "data.csv")


def test_scores_and_negatives_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="leave one of them out"):
        find_columns(table("a", "b", "c"), Chosen("a", "b", "c", "c"), "data.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"score": "high"}, r"Line 2 of .* has 'high' in 'score', where a score belongs"),
        ({"score": [1]}, r"has '\[1\]' in 'score', where a score belongs"),
        ({"score": None}, "Line 2 of .* has no 'score': fill it in or leave it out with --skip-empty"),
        ({"sentence2": " "}, "Line 2 of .* has no 'sentence2'"),
        ({"sentence1": "w1 \ud800"}, r"Line 2 of .* has a text in 'sentence1' that is not valid Unicode"),
        ({"sentence1": 5}, "has a number in 'sentence1', where a text belongs"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    rows = scored_pairs(3)
    rows[1] |= row
    source = str(write_lines(tmp_path / "data.jsonl", rows))
    with pytest.raises(InputError, match=message):
        read_embedding_data(source, NONE, reading=Reading())


def test_empty_rows_are_left_out_if_asked(tmp_path: Path) -> None:
    rows = [*scored_pairs(3), {"sentence1": "w1", "sentence2": "w2", "score": None, "id": 7}]
    data = read_embedding_data(str(write_lines(tmp_path / "x.jsonl", rows)), NONE, reading=Reading(skip_empty=True))
    assert len(data.texts) == len(data.scores or ()) == 3
    assert "Left out 1 row" in data.notes[-2] and "not used: id" in data.notes[-1]


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("scored pairs", [{**row, "score": 3} for row in scored_pairs(4)], "All scores of the train data .* are 3"),
        ("pairs", [{**row, "answer": "w1"} for row in pairs(4)], "only one different text in 'answer'"),
        ("triplets", [{**row, "negative": row["positive"]} for row in triplets(4)], "has the same text in 'positive' and 'negative'"),
    ],
)  # fmt: skip
def test_data_that_teaches_nothing_is_refused(tmp_path: Path, kind: Any, rows: list[Any], message: str) -> None:
    data = read_embedding_data(str(write_lines(tmp_path / "data.jsonl", rows)), NONE)
    with pytest.raises(InputError, match=message):
        EMBEDDING_PROBLEMS[kind].check(data, "train")


def test_rows_that_share_a_text_are_counted(tmp_path: Path) -> None:
    rows = [{"query": f"w{number}", "answer": f"w{10 + number // 2}"} for number in range(4)] + [
        {"query": "w8", "answer": "w9"}
    ]
    data = read_embedding_data(str(write_lines(tmp_path / "data.jsonl", rows)), NONE)
    (note,) = EMBEDDING_PROBLEMS["pairs"].check(data, "train")
    assert note.startswith("4 rows of") and "share a text with another row" in note
    assert EMBEDDING_PROBLEMS["pairs"].check(data, "test") == []
    assert EMBEDDING_PROBLEMS["pairs"].targets(data) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)]


def test_equal_first_texts_are_split_off_together(tmp_path: Path) -> None:
    rows = [{"query": f"w{number % 5}", "answer": f"w{5 + number}"} for number in range(15)]
    source = str(write_lines(tmp_path / "data.jsonl", rows))
    options: dict[str, Any] = {"validation_fraction": 0.4, "seed": 3}
    splits = load_embedding_data({"train": source}, NONE, Reading(), **options)
    firsts = {name: {texts[0] for texts in split.texts} for name, split in splits.items()}
    assert len(firsts["train"]) == 3 and len(firsts["validation"]) == 2 and not firsts["train"] & firsts["validation"]
    write_lines(tmp_path / "data.jsonl", [{**row, "query": "w1"} for row in rows])
    with pytest.raises(InputError, match="has one 'query' for all rows, so no validation data can be split off"):
        load_embedding_data({"train": source}, NONE, Reading(), **options)
    write_lines(tmp_path / "data.jsonl", rows[:1])
    with pytest.raises(InputError, match="has a single row, so no validation data"):
        load_embedding_data({"train": source}, NONE, Reading(), **options)


def test_splits_of_different_kinds_are_refused(tmp_path: Path) -> None:
    train = str(write_lines(tmp_path / "train.jsonl", triplets(6)))
    test = str(write_lines(tmp_path / "test.jsonl", pairs(6)))
    with pytest.raises(InputError, match="test.jsonl holds pairs, and the training data triplets"):
        load_embedding_data({"train": train, "test": test}, NONE, Reading(), validation_fraction=0.5, seed=0)
