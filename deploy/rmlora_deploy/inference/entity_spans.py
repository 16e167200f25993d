"""From the scores of a text's tokens to its entities, by the conventions of transformers' pipeline (numpy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rmlora.entities import TagScheme
from rmlora.inputs import Arrays
from rmlora.offsets import OFFSETS
from rmlora.token_inputs import WORDS, first_tokens
from rmlora.words import Sentence
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.prediction import to_results

__all__ = ["Aggregation", "EntitySpan", "Tagging", "to_tagging"]

Aggregation = Literal["first", "simple"]
"""``first``: a word has the label of its first token, as in training. ``simple``: every token has its own, so an entity may end
within a word."""


@dataclass(frozen=True)
class EntitySpan:
    """Neighboring words with one label."""

    label: str
    """Without a prefix such as ``B-``."""
    score: float
    """Probability of the label, mean over its words (or tokens)."""
    text: str
    start: int
    """First character in the text; of given words, in the text that they make with a space between every two."""
    end: int
    """Character after the last."""
    words: tuple[int, int] | None = None
    """First word and the one after the last, if the words were given."""


@dataclass(frozen=True)
class Tagging:
    """The entities of one text."""

    text: str
    entities: tuple[EntitySpan, ...]
    """In order."""
    unread_from: int | None = None
    """Character from which the text is too long for the model, so that nothing is found there; None if all was read."""


class _Unit(NamedTuple):
    """A word or token: its scores are those of ``token``."""

    token: int
    start: int
    stop: int
    word: int


def to_tagging(
    scores: npt.NDArray[np.generic],
    row: Arrays,
    sentence: Sentence,
    labels: Sequence[str],
    bundle: Bundle,
    aggregation: Aggregation = "first",
) -> Tagging:
    """Return the entities that ``scores [tokens, labels]`` make of a text.

    Args:
        scores: of the graph, with or without the tokens of padding after the row's own.
        row: the text's tokens (:class:`rmlora.token_inputs.TokenInputs`).
        sentence: the text.
        labels: of the adapter, or of the bundle.
        bundle: that gave the scores, for error messages.
        aggregation: how tokens make words.

    Raises:
        InputError: there are not as many scores as labels, or they are not finite.
    """
    results, _ = to_results(np.asarray(scores)[: len(row[OFFSETS])], labels, bundle, "softmax")
    units = _words(row) if aggregation == "first" else _tokens(row)
    best = [int(results[unit.token].argmax()) for unit in units]
    found = []
    for entity in TagScheme.of(labels).entities([labels[number] for number in best]):
        part = range(entity.start, entity.stop)
        start, end = units[entity.start].start, max(units[index].stop for index in part)
        score = float(np.mean([results[units[index].token, best[index]] for index in part]))
        words = (units[entity.start].word, units[entity.stop - 1].word + 1) if sentence.given else None
        found.append(EntitySpan(entity.label, score, sentence.text[start:end], start, end, words))
    return Tagging(sentence.text, tuple(found), _unread_from(row, sentence.text))


def _tokens(row: Arrays) -> list[_Unit]:
    offsets: Any = row[OFFSETS].tolist()
    return [
        _Unit(token, start, stop, int(row[WORDS][token]))
        for token, (start, stop) in enumerate(offsets)
        if stop > start and row[WORDS][token] >= 0
    ]


def _words(row: Arrays) -> list[_Unit]:
    """Return the words that have a token of their own, each with the characters of all its tokens."""
    tokens, first = _tokens(row), set(first_tokens(row).tolist())
    units: list[_Unit] = []
    for unit in tokens:
        if unit.token in first:
            units.append(unit)
        elif units:
            units[-1] = units[-1]._replace(stop=max(units[-1].stop, unit.stop))
    return units


def _unread_from(row: Arrays, text: str) -> int | None:
    stop = int(row[OFFSETS][:, 1].max(initial=0))
    rest = text[stop:]
    return stop + len(rest) - len(rest.lstrip()) if rest.strip() else None
