"""Pairs of texts as inputs: how they are written, tokenized, batched with single texts, and refused."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from rmlora.errors import InputError
from rmlora.inputs import TextInputs
from rmlora.tasks import get_task
from rmlora.text_pair import TextPair, check_form, text_or_pair

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e"]
NAMES = ["input_ids", "token_type_ids", "attention_mask"]


@pytest.fixture(scope="module")
def bert() -> Any:
    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=16)


def rows(tokenizer: Any, *inputs: Any, length: int | None = None) -> list[Any]:
    return TextInputs().rows(tokenizer, inputs, lengths=[length] * len(inputs), names=NAMES)


def test_a_pair_is_a_list_of_two_texts() -> None:
    for written in (["a", "b"], ("a", "b"), TextPair("a", "b")):
        assert text_or_pair(written) == TextPair("a", "b")
        assert isinstance(text_or_pair(written), TextPair)
    for other in ("ab", ["a"], ["a", "b", "c"], ["a", 1], None, 3):
        assert text_or_pair(other) is other


def test_texts_and_pairs_stand_in_one_batch(bert: Any) -> None:
    made = rows(bert, "a", ["a", "b c"], "d e")
    batch = TextInputs().collate(bert, made)
    assert batch["token_type_ids"].tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0] * 6]
    assert batch["input_ids"].tolist() == [[2, 5, 3, 0, 0, 0], [2, 5, 3, 6, 7, 3], [2, 8, 9, 3, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 6, 4]


def test_the_longer_text_is_truncated_first(bert: Any) -> None:
    (row,) = rows(bert, ("a", "b c d e"), length=6)
    assert row["input_ids"].tolist() == [2, 5, 3, 6, 7, 3]
    (row,) = rows(bert, ("a b c d", "e"), length=6)
    assert row["input_ids"].tolist() == [2, 5, 6, 3, 9, 3]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (("a", " "), "The second text of pair 2 is empty: every text of a pair needs at least one word"),
        (("", "a"), "The first text of pair 2 is empty"),
        (("a", "\ud800"), "The second text of pair 2 is not valid Unicode"),
        (["a", "b", "c"], "Input 2 is a list of 3: give one text, or two where the model reads pairs"),
        (["a", 1], "Input 2 is a list of 2"),
        ("", "Text 2 is empty: every input needs at least one word"),
    ],
)
def test_what_is_no_pair_is_refused(bert: Any, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows(bert, "a", value)


def test_a_model_of_single_texts_takes_no_pair(bert: Any) -> None:
    inputs = get_task("feature-extraction").inputs
    assert not inputs.takes_pairs
    assert inputs.is_empty(["a", "b"])
    with pytest.raises(InputError, match="Input 1 is a list of 2"):
        inputs.rows(bert, [["a", "b"]], lengths=[None], names=NAMES)


def test_samples_are_pairs_of_different_texts() -> None:
    pairs = TextInputs().sample(32, "pair")
    assert all(isinstance(pair, TextPair) and pair.first != pair.second for pair in pairs)
    assert TextInputs().sample(3) == [pair.first for pair in pairs[:3]]


def test_an_input_has_the_form_that_was_trained() -> None:
    for value in ("a", ["a", "b"]):
        check_form(value, None, number=1, name="x")
    check_form(["a", "b"], "pair", number=1, name="x")
    check_form("a", "text", number=1, name="x")
    with pytest.raises(InputError, match="'nli' was trained on pairs of texts, and input 3 is a single text: give two"):
        check_form("a", "pair", number=3, name="nli")
    with pytest.raises(
        InputError, match="'spam' was trained on single texts, and input 1 is a pair of texts: give one"
    ):
        check_form(("a", "b"), "text", number=1, name="spam")
