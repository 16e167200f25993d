"""Reading words with tags: lists, character spans, CoNLL files, parquet with declared names; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rmlora.errors import ConfigError, InputError
from rmlora.training.data import Columns
from rmlora.training.table import Reading
from rmlora.training.tagged_data import TaggedData, load_tagged, order_tags, read_tagged
from tests.helpers.taggers import tag_rows, write_rows


def pairs(data: TaggedData, row: int = 0) -> list[tuple[str, str]]:
    """Return the words of a row with their tags."""
    text = data.texts[row]
    return [(text.sentence.text[a:b], tag) for (a, b), tag in zip(text.sentence.words, text.tags, strict=True)]


def read(path: Path, **options: Any) -> TaggedData:
    return read_tagged(str(path), Columns(), reading=Reading(), **options)


@pytest.mark.parametrize("names", [("tokens", "ner_tags"), ("words", "tags"), ("tokens", "labels"), ("text", "tags")])
def test_lists_of_words_and_tags(names: tuple[str, str], tmp_path: Path) -> None:
    words: Any = ["Anna", "lives", "in", "New York"]
    if names[0] == "text":
        words = "Anna  lives in New_York"  # words stand between spaces
    data = read(write_rows(tmp_path / "a.jsonl", [{names[0]: words, names[1]: ["B-PER", "O", "O", "B-LOC"], "id": 3}]))
    assert [tag for _, tag in pairs(data)] == ["B-PER", "O", "O", "B-LOC"]
    assert pairs(data)[3][0] in ("New York", "New_York")
    assert order_tags(data) == ("O", "B-LOC", "B-PER") and "not used: id" in data.notes[0]


def test_numbers_have_the_names_that_the_dataset_declares(tmp_path: Path) -> None:
    import datasets

    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    rows = {"tokens": [["Anna", "Berg", "left"]], "ner_tags": [[1, 2, 0]]}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    data = read(path)
    assert pairs(data) == [("Anna", "B-PER"), ("Berg", "I-PER"), ("left", "O")]
    assert order_tags(data) == tuple(names)


def test_numbers_without_names_need_labels(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"tokens": ["Anna", "left"], "ner_tags": [1, 0]}])
    with pytest.raises(InputError, match=r"Line 1 of .* numbers its tags .* pass their names with --labels"):
        read(path)
    assert pairs(read(path, tags=["O", "B-PER"])) == [("Anna", "B-PER"), ("left", "O")]


@pytest.mark.parametrize("key", ["label", "entity_group", "type"])
@pytest.mark.parametrize("column", ["entities", "spans", "label"])
def test_character_spans_become_tags(key: str, column: str, tmp_path: Path) -> None:
    text = "Send Ann's book to New York, please."
    spans = [{"start": 5, "end": 8, key: "PER"}, {"start": 19, "end": 27, key: "LOC"}]
    data = read(write_rows(tmp_path / "a.jsonl", [{"text": text, column: spans}, {"text": "No one", column: []}]))
    assert pairs(data)[:3] == [("Send", "O"), ("Ann", "B-PER"), ("'", "O")]
    assert pairs(data)[6:] == [("New", "B-LOC"), ("York", "I-LOC"), (",", "O"), ("please", "O"), (".", "O")]
    assert pairs(data, 1) == [("No", "O"), ("one", "O")]
    assert order_tags(data) == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_spans_may_be_triples_and_begin_within_a_word(tmp_path: Path) -> None:
    data = read(
        write_rows(tmp_path / "a.jsonl", [{"text": "exBerlin city ", "label": [[2, 8, "LOC"], [8, 14, "KIND"]]}])
    )
    assert pairs(data) == [("ex", "O"), ("Berlin", "B-LOC"), ("city", "B-KIND")]


CONLL = """-DOCSTART- -X- -X- O

# sent 1
EU NNP B-NP B-ORG
rejects VBZ B-VP O

# NN I-NP O
one CD I-NP B-NUM
"""


def test_conll_files(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(CONLL)
    data = read(path)
    assert pairs(data) == [("EU", "B-ORG"), ("rejects", "O")] and pairs(data, 1) == [("#", "O"), ("one", "B-NUM")]
    assert data.notes == (f"1 line of {path} that begin with # were read as comments.",)
    tagged = read_tagged(str(path), Columns(label="2"), reading=Reading())
    assert pairs(tagged, 1) == [("#", "NN"), ("one", "CD")]
    for name in ("b.txt", "b.bio"):
        (tmp_path / name).write_text("New York\tB-LOC\r\nis\tO\r\n\r\nAnna\tB-PER\r\n")
        assert pairs(read(tmp_path / name)) == [("New York", "B-LOC"), ("is", "O")]


def test_words_of_conll_files_may_hold_any_character_that_ends_no_line(tmp_path: Path) -> None:
    """A space that does not break (French writes it into numbers), U+2028 and U+0085 are parts of words."""
    (tmp_path / "a.conll").write_bytes("10\xa0000 B-NUM\r\na\u2028b  O\n\nc\x85 O\n".encode())
    data = read(tmp_path / "a.conll")
    assert pairs(data) == [("10\xa0000", "B-NUM"), ("a\u2028b", "O")] and pairs(data, 1) == [("c\x85", "O")]


REFUSED: dict[str, tuple[Any, str]] = {
    "fewer tags": ({"tokens": ["a", "b"], "tags": ["O"]}, "Line 1 of .* has 2 words and 1 tags"),
    "no list": ({"tokens": ["a", "b"], "tags": "O O"}, "which are no list"),
    "tag null": ({"tokens": ["a"], "tags": [None]}, "has an empty tag"),
    "empty tag": ({"tokens": ["a"], "tags": [""]}, "has an empty tag"),
    "no columns": ({"sentence": "a", "y": ["O"]}, "none of the columns ner_tags"),
    "no words": ({"tokens": [], "tags": []}, "Line 1 of .* has no words or no tags.*--skip-empty"),
    "outside": ({"text": "abc", "entities": [{"start": 1, "end": 9, "label": "X"}]}, "has 3 characters"),
    "backwards": ({"text": "abc", "entities": [{"start": 2, "end": 1, "label": "X"}]}, "from 2 to 1"),
    "no label": ({"text": "abc", "entities": [{"start": 0, "end": 1}]}, "which lacks something"),
    "fraction": ({"text": "abc", "entities": [[0, 1.5, "X"]]}, "whole numbers"),
    "overlap": ({"text": "abc def", "entities": [[0, 7, "X"], [4, 7, "Y"]]}, "overlap"),
    "blank": ({"text": "a  b", "entities": [[1, 3, "X"]]}, "only white space"),
    "numbers": ({"tokens": [1, 2], "tags": ["O", "O"]}, "neither a text nor a list of words"),
    "a number": ({"tokens": 1, "tags": ["O"]}, "neither a text nor a list of words"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused(what: str, tmp_path: Path) -> None:
    row, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        read(write_rows(tmp_path / "a.jsonl", [row]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU B-ORG\nrejects\n", "Line 2 of .* has 1 column, and the first has 2"),
        ("one\ntwo\n", "each needs a word and its tag"),
        ("\n\n", "no row with both"),
    ],
)
def test_broken_conll_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.conll")


def test_rows_without_words_may_be_left_out(tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": ["B-X"]}, {"tokens": [], "tags": []}, {"tokens": ["", "b"], "tags": ["O", "O"]}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    data = read_tagged(str(path), Columns(), reading=Reading(skip_empty=True))
    assert [pairs(data, row) for row in range(2)] == [[("a", "B-X")], [("b", "O")]]
    assert data.notes == (f"Left out 1 row of {path} without words or tags: line 2.",)


def test_splits_share_their_tags_and_no_text(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", tag_rows(60) * 2)
    load = {"columns": Columns(), "reading": Reading(), "tags": None, "validation_fraction": 0.25, "seed": 3}
    splits = load_tagged({"train": str(path)}, **load)  # type: ignore[arg-type]
    texts = {name: {text.sentence.text for text in data.texts} for name, data in splits.items()}
    assert not texts["train"] & texts["validation"] and sum(len(data.texts) for data in splits.values()) == 120
    assert order_tags(splits["train"]) == ("O", "B-room", "I-room", "B-thing", "I-thing")
    other = write_rows(tmp_path / "test.jsonl", [{"tokens": ["a"], "ner_tags": ["B-person"]}])
    with pytest.raises(ConfigError, match=r"test.jsonl has the tag 'B-person', which the model's tags lack"):
        load_tagged({"train": str(path), "test": str(other)}, **load)  # type: ignore[arg-type]
