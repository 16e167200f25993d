"""Which tokens of a conversation carry the loss, with several chat templates and without one; what is cut and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rmlora.errors import InputError
from rmlora.training.answer_tokens import EncodedRow, PromptFormat, encode_split
from rmlora.training.conversations import Conversation, Conversations, Form
from tests.helpers.chats import CHATML, MARKED, chat_tokenizer

QWEN3 = (
    "{% for message in messages %}{% if message['role'] == 'assistant' and loop.last %}<|im_start|>assistant\n"
    "you help\n{{ message['content'] }}<|im_end|>\n{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Like Qwen3's: only the last answer is shown with its thoughts."""
PLAIN = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
"""A template that ends no turn with a special token."""


def chat(*contents: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(7, tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(contents)))


def learned(row: EncodedRow, tokenizer: Any) -> str:
    return str(tokenizer.decode([token for token, answer in zip(row.ids, row.answer, strict=True) if answer]))


def encode(conversation: Conversation, template: str | None, **options: Any) -> list[tuple[str, str]]:
    """Return for each row its text and the part that is learned."""
    tokenizer = chat_tokenizer(template)
    rows = PromptFormat(tokenizer, "base", **options).encode(conversation)
    return [(str(tokenizer.decode(row.ids)), learned(row, tokenizer)) for row in rows]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["prefixes", "markers"])
def test_the_answer_and_its_end_of_turn_are_learned(template: str) -> None:
    ((text, answer),) = encode(chat("a b", "c d"), template)
    assert answer == "c d<|im_end|>"
    assert text.rstrip() == (
        "<|im_start|>system\nyou help<|im_end|>\n<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\nc d<|im_end|>"
    )


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["prefixes", "markers"])
def test_every_answer_of_a_chat_is_learned(template: str) -> None:
    ((_, answers),) = encode(chat("a", "b", "c", "d e"), template)
    assert answers == "b<|im_end|>d e<|im_end|>"


def test_a_prompt_and_its_completion_are_a_chat_of_one_turn() -> None:
    assert encode(Conversation(1, (), "a b", "c d"), CHATML) == encode(chat("a b", "c d"), CHATML)


def test_answers_that_the_template_changes_later_become_rows_of_their_own() -> None:
    rows = encode(chat("a", "b", "c", "d"), QWEN3)
    assert [answer for _, answer in rows] == ["you help\nb<|im_end|>", "you help\nd<|im_end|>"]
    assert rows[1][0].count("you help") == 1


def test_a_template_without_end_of_turn_gets_the_end_of_text() -> None:
    ((text, answer),) = encode(chat("a b", "c d"), PLAIN)
    assert (text, answer) == ("user a b\nassistant c d<|im_end|>", "c d<|im_end|>")


def test_raw_joins_prompt_and_completion_as_they_stand() -> None:
    for template, options in ((None, {}), (CHATML, {"raw": True})):
        assert encode(Conversation(1, (), "a b ", "c d"), template, **options) == [
            ("a b c d<|im_end|>", "c d<|im_end|>")
        ]


@pytest.mark.parametrize("template", [CHATML, MARKED, PLAIN, QWEN3, None])
def test_the_prompt_of_generation_is_what_training_saw_before_the_answer(template: str | None) -> None:
    tokenizer = chat_tokenizer(template)
    form = PromptFormat(tokenizer, "base")
    row = Conversation(1, (), "a b", "c d")
    (encoded,) = form.encode(row)
    assert form.prompt(row) == encoded.ids[: encoded.answer.index(True)]


def data(*rows: Conversation, form: Form = "messages") -> Conversations:
    return Conversations("train.jsonl", form, "line", tuple(replace(row, number=i) for i, row in enumerate(rows, 1)))


def test_long_rows_are_cut_at_the_end_and_said() -> None:
    form = PromptFormat(chat_tokenizer(), "base")
    (whole,) = form.encode(chat("a", "b c d e"))
    split = encode_split(
        data(chat("a", "b"), chat("a", "b c d e")), form, max_length=len(whole.ids) - 3, skip_long=False
    )
    assert split.rows[1].ids == whole.ids[:-3] and split.rows[1].answer[-1]
    assert "1 row of train.jsonl is longer than" in split.notes[0] and "--max-length" in split.notes[0]


def test_rows_without_any_answer_left_are_refused_or_left_out_and_counted() -> None:
    form = PromptFormat(chat_tokenizer(), "base")
    rows = data(chat("a", "b"), chat("a b c d e f", "b"), chat("a b c d e g", "b"))
    with pytest.raises(
        InputError, match=r"^Lines 2 and 3 of train.jsonl have no token of their answer .*--skip-long\.$"
    ):
        encode_split(rows, form, max_length=23, skip_long=False)
    split = encode_split(rows, form, max_length=23, skip_long=True)
    assert len(split.rows) == len(split.prompts) == len(split.references) == 1
    assert split.notes[0].startswith("Left out 2 rows: lines 2 and 3 of train.jsonl")
    with pytest.raises(InputError, match="No row of train.jsonl fits into 4 tokens"):
        encode_split(rows, form, max_length=4, skip_long=True)


def test_a_chat_whose_last_answer_is_cut_away_still_teaches_the_earlier_ones() -> None:
    form = PromptFormat(chat_tokenizer(), "base")
    split = encode_split(data(chat("a", "b", "c d e f", "d")), form, max_length=24, skip_long=False)
    assert learned(split.rows[0], chat_tokenizer()) == "b<|im_end|>"
    assert not split.prompts and not split.references and "is longer than" in split.notes[0]


def test_plain_texts_are_learned_whole_in_pieces() -> None:
    tokenizer = chat_tokenizer(None)
    split = encode_split(
        data(Conversation(1, (), "", "a b c d"), form="text"),
        PromptFormat(tokenizer, "base"),
        max_length=4,
        skip_long=False,
    )
    assert [tokenizer.decode(row.ids) for row in split.rows] == ["a b ", "c d<|im_end|>"]
    assert all(row.answer == [False] + [True] * (len(row.ids) - 1) for row in split.rows)
    assert not split.prompts


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(InputError, match="the base base has no chat template .* prompt and completion"):
        encode_split(data(chat("a", "b")), PromptFormat(chat_tokenizer(None), "base"), max_length=9, skip_long=False)
    with pytest.raises(InputError, match="leave --raw out"):
        encode_split(
            data(chat("a", "b")), PromptFormat(chat_tokenizer(), "base", raw=True), max_length=9, skip_long=False
        )


def test_a_row_that_the_template_refuses_is_named() -> None:
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    rows = data(Conversation(1, ({"role": "system", "content": "a"}, *chat("a", "b").messages)))
    with pytest.raises(
        InputError, match="^Line 1 of train.jsonl does not fit the base's chat template: System role not"
    ):
        encode_split(rows, PromptFormat(chat_tokenizer(strict), "base"), max_length=99, skip_long=False)


def test_calls_of_tools_are_learned_where_the_template_writes_them_and_refused_where_not() -> None:
    calls: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": ["c d"]}
    rows = data(Conversation(1, (*chat("a").messages, calls)))
    with pytest.raises(
        InputError, match="^Line 1 of train.jsonl has a message 2 with tool_calls, which .* does not write"
    ):
        encode_split(rows, PromptFormat(chat_tokenizer(), "base"), max_length=99, skip_long=False)
    writes = CHATML.replace("{{ message['content'] }}", "{{ message['content'] or message['tool_calls'][0] }}")
    tokenizer = chat_tokenizer(writes)
    split = encode_split(rows, PromptFormat(tokenizer, "base"), max_length=99, skip_long=False)
    assert learned(split.rows[0], tokenizer) == "c d<|im_end|>"
    assert not split.prompts and not split.references  # there is no text that a generated one could be compared with


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="has no end-of-text token"):
        PromptFormat(tokenizer, "base")
