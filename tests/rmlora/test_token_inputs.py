"""Rows of texts whose tokens know their characters and words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rmlora.errors import CheckpointError, InputError
from rmlora.offsets import OFFSETS
from rmlora.plain_tokenizer import PlainTokenizer
from rmlora.tasks import get_task
from rmlora.token_inputs import WORDS, TokenInputs, first_tokens
from tests.helpers.taggers import TEXTS, word_pieces

NAMES = ["input_ids", "attention_mask"]


def test_tokens_know_their_words() -> None:
    (row, given) = TokenInputs().rows(
        word_pieces(), ["Turn the lamps off.", ["the kitchenette", "lamps"]], lengths=[None, None], names=NAMES
    )
    assert row[WORDS].tolist() == [-1, 0, 1, 2, 2, 3, 4, -1]
    assert first_tokens(row).tolist() == [1, 2, 3, 5, 6]
    assert row[OFFSETS][3].tolist() == [9, 13] and row[OFFSETS][4].tolist() == [13, 14]
    assert given[WORDS].tolist() == [-1, 0, 0, 0, 0, 1, 1, -1]  # a given word may have a space in it
    assert first_tokens(given).tolist() == [1, 5]


def test_batches_are_padded_on_the_right_and_hold_what_graphs_take() -> None:
    inputs, tokenizer = TokenInputs(), word_pieces()
    tokenizer.padding_side = "left"
    rows = inputs.rows(tokenizer, TEXTS, lengths=[None] * len(TEXTS), names=NAMES)
    batch = inputs.collate(tokenizer, rows)
    assert sorted(batch) == sorted(NAMES)
    for number, row in enumerate(rows):
        count = inputs.tokens(row)
        assert batch["input_ids"][number, :count].tolist() == row["input_ids"].tolist()
        assert not batch["attention_mask"][number, count:].any()


def test_a_text_that_is_cut_keeps_the_words_before() -> None:
    (row,) = TokenInputs().rows(word_pieces(), [TEXTS[0]], lengths=[6], names=NAMES)
    assert row[WORDS].tolist() == [-1, 0, 1, 2, 3, -1]


def test_without_transformers_the_rows_are_the_same(tmp_path: Path) -> None:
    fast = word_pieces()
    fast.save_pretrained(tmp_path)
    plain, lengths = PlainTokenizer.open(tmp_path), [None] * len(TEXTS)
    expected = TokenInputs().rows(fast, TEXTS, lengths=lengths, names=NAMES)
    for row, want in zip(TokenInputs().rows(plain, TEXTS, lengths=lengths, names=NAMES), expected, strict=True):
        assert row.keys() == want.keys()
        for name, array in want.items():
            np.testing.assert_array_equal(row[name], array)


def test_white_space_belongs_to_no_token() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(["<pad>", *sorted(ByteLevel.alphabet())])}
    made = Tokenizer(BPE({**letters, "Ġa": 300}, [("Ġ", "a")]))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    (row,) = TokenInputs().rows(fast, ["b a é"], lengths=[None], names=["input_ids"])
    text = "b a é"
    assert [text[a:b] for a, b in row[OFFSETS].tolist()][:2] == ["b", "a"]
    assert row[WORDS][first_tokens(row)].tolist() == [0, 1, 2]


def test_tokenizers_without_offsets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __call__(self, texts: list[str], **options: object) -> dict[str, object]:
            raise NotImplementedError("return_offsets_mapping is not available when using Python tokenizers.")

    monkeypatch.setattr("rmlora.inputs.load_tokenizer", lambda directory, **options: Slow())
    with pytest.raises(CheckpointError, match="does not say which characters its tokens stand for"):
        get_task("token-classification").inputs.load_processor(tmp_path)


@pytest.mark.parametrize("empty", ["", "  ", [], ["", " "]])
def test_nothing_to_tag(empty: object) -> None:
    assert TokenInputs().is_empty(empty)
    with pytest.raises(InputError, match="is empty"):
        TokenInputs().rows(word_pieces(), [empty], lengths=[None], names=NAMES)
