"""From the cells of one row to a text whose words have tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rmlora.entities import OUTSIDE
from rmlora.errors import InputError
from rmlora.words import Sentence, Span, word_spans

__all__ = ["TaggedText", "is_spans", "text_of_spans", "text_of_tags"]

_LABEL_KEYS = ("label", "type", "entity_group", "entity", "tag", "class")
_STOP_KEYS = ("end", "stop")


@dataclass(frozen=True)
class TaggedText:
    """A text with a tag for every word."""

    sentence: Sentence
    tags: tuple[str, ...]
    from_spans: bool = False
    """True if the tags were made from character spans."""


def is_spans(cell: Any, value: Any) -> bool:
    """Return True if a cell lists character spans: objects, or triples of start, end and label.

    Args:
        cell: of the label column.
        value: what it labels; an empty list of labels for a text is one of spans.
    """
    if not isinstance(cell, (list, tuple)):
        return False
    if not len(cell):
        return isinstance(value, str)
    return all(isinstance(item, Mapping) or (isinstance(item, (list, tuple)) and len(item) == 3) for item in cell)


def text_of_tags(
    value: str | Sequence[str], cell: Any, declared: Sequence[str] | None, tags: Sequence[str] | None, *, where: str
) -> TaggedText:
    """Return a text whose words have tags.

    Args:
        value: list of words, or a text whose words stand between spaces.
        cell: list of as many tags, by name or number.
        declared: names that the dataset declares for numbers.
        tags: of the model, which numbers may stand for.
        where: file and row, for error messages.

    Raises:
        InputError: the cell is no such list.
    """
    if isinstance(value, str):
        sentence = Sentence(value, tuple(match.span() for match in re.finditer(r"\S+", value)), given=True)
    else:
        sentence = Sentence.of([str(word) for word in value])
    if isinstance(cell, str) or not hasattr(cell, "__len__"):
        raise InputError(
            f"{where} has the tags {str(cell)[:40]!r}, which are no list: words need a list of tags, one for each."
        )
    if len(cell) != len(sentence.words):
        raise InputError(f"{where} has {len(sentence.words)} words and {len(cell)} tags: write one tag for every word.")
    named = [_name(tag, declared, tags, where) for tag in cell]
    kept = [index for index, (start, stop) in enumerate(sentence.words) if sentence.text[start:stop].strip()]
    words = Sentence(sentence.text, tuple(sentence.words[index] for index in kept), given=True)
    return TaggedText(words, tuple(named[index] for index in kept))


def text_of_spans(value: Any, cell: Sequence[Any], *, where: str) -> TaggedText:
    """Return a text whose words have the tags ``B-…`` and ``I-…`` of its entities; words are split where an entity begins or ends.

    Raises:
        InputError: an entity lies outside the text, is empty, has no label, or overlaps another.
    """
    if not isinstance(value, str):
        raise InputError(
            f"{where} has entities with positions, but a list of words: positions count characters of a text."
        )
    entities = sorted(_entity(item, value, where) for item in cell)
    for (first, stop, _), (second, _, _) in pairwise(entities):
        if second < stop:
            raise InputError(
                f"{where} has entities that overlap, {value[first:stop]!r} and the one at {second}: a word has one tag, so keep "
                "one of them."
            )
    cuts = {position for start, stop, _ in entities for position in (start, stop)}
    words = [part for span in word_spans(value) for part in _cut(span, cuts)]
    tags = [OUTSIDE] * len(words)
    for start, stop, label in entities:
        inside = [index for index, word in enumerate(words) if start <= word[0] and word[1] <= stop]
        for number, index in enumerate(inside):
            tags[index] = f"{'I' if number else 'B'}-{label}"
    return TaggedText(Sentence(value, tuple(words)), tuple(tags), from_spans=True)


def _name(tag: Any, declared: Sequence[str] | None, tags: Sequence[str] | None, where: str) -> str:
    if tag is None or (isinstance(tag, str) and not tag.strip()):
        raise InputError(f"{where} has an empty tag: write O for words that belong to nothing.")
    if isinstance(tag, str) and (tags is None or tag in tags or not tag.isdigit()):
        return tag
    names = declared if declared is not None else tags
    if names is None:
        raise InputError(f"{where} numbers its tags ({tag}), and nothing names them: pass their names with --labels.")
    try:
        number = int(tag)
    except (TypeError, ValueError):
        raise InputError(f"{where} has {str(tag)[:40]!r} among its tags: write names or numbers.") from None
    if not 0 <= number < len(names):
        raise InputError(f"{where} has the tag {number}, but there are {len(names)}, numbered from 0.")
    return names[number]


def _entity(item: Any, text: str, where: str) -> tuple[int, int, str]:
    """Return start, stop and label of an entity, without white space at its ends."""
    start: Any
    stop: Any
    if isinstance(item, Mapping):
        stop = next((item[key] for key in _STOP_KEYS if key in item), None)
        label = next((item[key] for key in _LABEL_KEYS if key in item), None)
        start = item.get("start")
    else:
        start, stop, label = item
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (start, stop))
    if not whole or not isinstance(label, str) or not label.strip():
        raise InputError(
            f"{where} has the entity {str(item)[:80]}, which lacks something: write whole numbers start and end, and a label."
        )
    if not 0 <= start < stop <= len(text):
        raise InputError(
            f"{where} has an entity from {start} to {stop}, but the text has {len(text)} characters: end is the position after the "
            "last character."
        )
    part = text[start:stop]
    if not part.strip():
        raise InputError(f"{where} has an entity from {start} to {stop} that is only white space.")
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip()), label.strip()


def _cut(span: Span, cuts: set[int]) -> list[Span]:
    start, stop = span
    edges = [start, *sorted(cut for cut in cuts if start < cut < stop), stop]
    return list(pairwise(edges))
