"""Two texts that are judged together, as one input: a premise and a hypothesis, or a query and a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from rmlora.errors import InputError

__all__ = ["PAIR_COLUMNS", "InputForm", "TextPair", "check_form", "form_of", "text_or_pair", "texts_of"]

InputForm: TypeAlias = Literal["text", "pair"]
"""What an input of a text model is: a single text, or a pair of texts."""

PAIR_COLUMNS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"), ("question1", "question2"),
    ("question", "passage"), ("question", "answer"), ("query", "passage"), ("query", "document"), ("query", "text"),
    ("text1", "text2"), ("text_1", "text_2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("text", "text_pair"),
    ("claim", "evidence"),
)  # fmt: skip
"""Columns of GLUE's tasks, and other common names of the two texts of a pair."""


class TextPair(NamedTuple):
    """A pair of texts. Files and requests write it as a list of two texts, or in two columns."""

    first: str
    second: str


def text_or_pair(value: Any) -> Any:
    """Return a list or tuple of two texts as a :class:`TextPair`, and anything else as it is."""
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(item, str) for item in value):
        return TextPair(*value)
    return value


def texts_of(value: str | TextPair) -> tuple[str, ...]:
    """Return the one or two texts of an input."""
    return (value,) if isinstance(value, str) else tuple(value)


def form_of(inputs: Sequence[Any]) -> InputForm:
    """Return the form of ``inputs``, which all have the same one."""
    return "pair" if isinstance(inputs[0], TextPair) else "text"


def check_form(value: Any, form: InputForm | None, *, number: int, name: str) -> None:
    """Raise :class:`InputError` unless an input has the form that an adapter was trained on.

    Args:
        value: text or pair.
        form: recorded for the adapter; None accepts both.
        number: of the input, counted from 1.
        name: the adapter, as its user calls it.
    """
    if form is not None and form != form_of([text_or_pair(value)]):
        given, advice = ("a single text", "give two texts") if form == "pair" else ("a pair of texts", "give one text")
        trained = "pairs of texts" if form == "pair" else "single texts"
        raise InputError(f"'{name}' was trained on {trained}, and input {number} is {given}: {advice}.")
