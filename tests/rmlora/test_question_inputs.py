"""Questions and contexts as windows, compared with transformers' own, and what is chosen from their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmlora.answer_spans import best_spans, scored_tokens
from rmlora.errors import CheckpointError, InputError
from rmlora.offsets import OFFSETS
from rmlora.processors import load_tokenizer
from rmlora.question_inputs import QuestionInputs
from rmlora.question_windows import CONTEXT, SOURCES
from rmlora.tasks import get_task
from rmlora.text_pair import TextPair
from tests.helpers.questions import LONG, PAIRS, pair_tokenizer

INPUTS = QuestionInputs()


@pytest.mark.parametrize("limit", [16, 23, 40, 200])
def test_windows_are_those_of_transformers(limit: int, tmp_path: Path) -> None:
    pair_tokenizer().save_pretrained(tmp_path)
    fast: Any = load_tokenizer(tmp_path)
    for pair in PAIRS:
        windows = INPUTS.parts(INPUTS.load_processor(tmp_path), list(pair), limit)
        question, context = pair
        room = limit - len(fast.tokenize(question)) - 3
        wanted = fast(
            question, context, truncation="only_second", max_length=limit, stride=min(128, room // 2),
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        assert [window.arrays["input_ids"].tolist() for window in windows] == wanted["input_ids"]
        assert not any(window.arrays["token_type_ids"].any() for window in windows)  # as PEFT's models are given none
        for number, window in enumerate(windows):
            places = [o if s == 1 else (0, 0) for o, s in zip(
                wanted["offset_mapping"][number], wanted.sequence_ids(number), strict=True
            )]  # fmt: skip
            assert window.arrays[OFFSETS].tolist() == [list(place) for place in places]
            assert window == pair  # a pair for everything that reads pairs


def test_every_part_of_a_context_is_read() -> None:
    windows = INPUTS.parts(pair_tokenizer(), TextPair("which light?", LONG), 24)
    assert len(windows) > 5
    read = {place for w in windows for a, b in w.arrays[OFFSETS][w.arrays[SOURCES] == CONTEXT] for place in range(a, b)}
    assert read == {place for place, letter in enumerate(LONG) if not letter.isspace()}


def test_rows_batch_to_the_right() -> None:
    tokenizer = pair_tokenizer()
    tokenizer.padding_side = "left"
    rows = INPUTS.rows(
        tokenizer, [TextPair(*p) for p in PAIRS], lengths=[None] * 4, names=["input_ids", "attention_mask"]
    )
    batch = INPUTS.collate(tokenizer, rows)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].shape == (4, 40) and (batch["input_ids"][:, 0] == 2).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("which lamp?", "is a question without a context"),
        (("which lamp ?", " "), "The second text of pair 1 is empty"),
        (("which lamp " * 15, LONG), "leaves too little room for its context: shorten the question"),
    ],
)
def test_what_cannot_be_read(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        INPUTS.parts(pair_tokenizer(), given, 40)


def test_a_tokenizer_without_offsets_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Slow:
        def __call__(self, *_: Any, **__: Any) -> dict[str, list[Any]]:
            raise NotImplementedError

    monkeypatch.setattr("rmlora.inputs.load_tokenizer", lambda *_, **__: Slow())
    with pytest.raises(CheckpointError, match="answers in a text need that"):
        get_task("question-answering").inputs.load_processor(tmp_path)


def windows_with(scores: dict[int, tuple[float, float]], context: str = "a b c d e") -> list[np.ndarray]:
    """Return one window of single letters, whose tokens have the scores for beginning and end; -1 is "no answer"."""
    letters = [index for index, letter in enumerate(context) if letter != " "]
    tokens = [(-1, -1), *((index, index + 1) for index in letters)]
    return [np.array([[*place, *scores.get(number - 1, (0.0, 0.0))] for number, place in enumerate(tokens)], float)]


def test_the_best_span_begins_before_it_ends() -> None:
    backwards = windows_with({3: (9, 0), 1: (0, 9), 2: (0, 5), 4: (0, 4)})
    (found,) = best_spans(backwards)
    assert (found.start, found.end) == (6, 9)
    assert best_spans(backwards, count=3)[0] == found and len(best_spans(backwards, count=99)) == 15


def test_answers_are_no_longer_than_allowed() -> None:
    wide = windows_with({0: (9, 0), 4: (0, 9), 1: (5, 1)})
    assert [(s.start, s.end) for s in best_spans(wide)] == [(0, 9)]
    assert all(span.end - span.start <= 3 for span in best_spans(wide, count=20, longest=2))


def test_no_answer_is_as_likely_as_the_window_that_claims_it_least() -> None:
    nothing, something = windows_with({-1: (9, 9)}), windows_with({-1: (0, 0), 2: (9, 9)})
    assert best_spans(nothing, may_lack=True)[0].is_empty
    assert not best_spans(nothing)[0].is_empty  # where there always is one
    found = best_spans(nothing + something, count=2, may_lack=True)
    assert (found[0].start, found[0].end) == (4, 5) and found[0].score > 0.9
    equal = best_spans(something + something, count=30)
    assert len(equal) == 15 and sum(span.score for span in equal) <= 1.0


def test_only_tokens_of_the_context_are_scored() -> None:
    (row,) = INPUTS.rows(pair_tokenizer(), [TextPair("what is red ?", "the lamp")], lengths=[None], names=["input_ids"])
    scores = np.arange(2.0 * (len(row["input_ids"]) + 3)).reshape(-1, 2)  # three of padding
    found = scored_tokens(scores, row)
    assert found[:, :2].tolist() == [[-1, -1], [0, 3], [4, 8]]
