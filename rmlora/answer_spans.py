"""From the scores of a context's tokens to the answers in it (numpy).

A span's score is the probability that it begins at its first token times the probability that it ends at its last. Both are
softmaxes over the tokens of the context in one window and the first special token, which stands for "the answer is not here":
a window without the answer is trained to point there, so it claims nothing loudly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from rmlora.inputs import Arrays
from rmlora.offsets import OFFSETS
from rmlora.question_windows import CONTEXT, SOURCES, SPECIAL

__all__ = ["LONGEST_ANSWER", "AnswerSpan", "best_spans", "no_answer_token", "scored_tokens"]

LONGEST_ANSWER = 30
"""Tokens of the longest answer, as in the scripts for SQuAD."""

Tokens = npt.NDArray[np.float64]
"""``[tokens, 4]``: of one window, first and last character of every token in the context, and its two scores; -1 as characters for
the token that stands for no answer. Tokens of the question are left out."""


@dataclass(frozen=True)
class AnswerSpan:
    """A part of a context."""

    start: int
    """First character."""
    end: int
    """Character after the last; equal to ``start`` if there is no answer."""
    score: float
    """Its probability."""

    @property
    def is_empty(self) -> bool:
        """True if it says that there is no answer."""
        return self.start == self.end


def no_answer_token(sources: npt.NDArray[Any]) -> int:
    """Return the index of the token that stands for "no answer": the first special one, else the first of all."""
    special = np.flatnonzero(np.asarray(sources) == SPECIAL)
    return int(special[0]) if len(special) else 0


def scored_tokens(scores: npt.NDArray[Any], row: Arrays) -> Tokens:
    """Return what of a window's scores counts.

    Args:
        scores: ``[tokens, 2]`` of the model, for beginning and end; those of padding may follow.
        row: the window's arrays.
    """
    sources, offsets = row[SOURCES], row[OFFSETS].astype(np.int64)
    nowhere = no_answer_token(sources)
    kept = np.flatnonzero((sources == CONTEXT) & (offsets[:, 1] > offsets[:, 0]))
    order = np.concatenate([[nowhere], kept[kept != nowhere]])
    places = offsets[order].astype(np.float64)
    places[0] = -1
    return np.concatenate([places, np.asarray(scores, np.float64)[order]], axis=1)


def best_spans(
    windows: Sequence[Tokens], *, count: int = 1, longest: int = LONGEST_ANSWER, may_lack: bool = False
) -> list[AnswerSpan]:
    """Return the likeliest different answers, the best first; at least one.

    Args:
        windows: of one context (:func:`scored_tokens`); scores are finite.
        count: most answers.
        longest: most tokens of an answer.
        may_lack: "no answer" is an answer too, as probable as the window that claims it least.
    """
    found: dict[tuple[int, int], float] = {}
    lacking = 1.0
    for tokens in windows:
        begins, ends = _softmax(tokens[:, 2]), _softmax(tokens[:, 3])
        lacking = min(lacking, float(begins[0] * ends[0]))
        joint = _joint(begins[1:], ends[1:], longest)
        for index in _largest(joint.ravel(), count):
            first, further = divmod(int(index), longest)
            last = 1 + first + further
            if last < len(tokens):
                span = int(tokens[1 + first, 0]), int(tokens[last, 1])
                found[span] = max(found.get(span, 0.0), float(joint[first, further]))
    spans = [AnswerSpan(start, end, score) for (start, end), score in found.items()]
    if may_lack or not spans:
        spans.append(AnswerSpan(0, 0, lacking))
    return sorted(spans, key=lambda span: (-span.score, span.start, span.end))[:count]


def _joint(begins: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], longest: int) -> npt.NDArray[np.float64]:
    """Return ``[tokens, longest]``: the probability of the span from each token to so many further ones; 0 beyond the last."""
    padded = np.concatenate([ends, np.zeros(longest)])
    return np.asarray(begins[:, None] * sliding_window_view(padded, longest)[: len(begins)])


def _largest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """Return the indices of the largest values, in any order."""
    return np.argpartition(-values, count - 1)[:count] if count < len(values) else np.arange(len(values))


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    exponents = np.exp(scores - scores.max())
    return np.asarray(exponents / exponents.sum())
