"""Answering questions from their contexts with a bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.answer_spans import LONGEST_ANSWER, best_spans, scored_tokens
from rmlora.errors import ConfigError, InputError
from rmlora.inputs import Arrays
from rmlora.text_pair import check_form, text_or_pair
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.input_lists import check_inputs
from rmlora_deploy.inference.opened_bundle import OpenedBundle
from rmlora_deploy.inference.prediction import check_finite
from rmlora_deploy.runtime import AdapterChoice
from rmlora_deploy.runtime.adapters.adapter_ref import resolve_choices

__all__ = ["Answerer", "FoundAnswer", "to_answers"]


@dataclass(frozen=True)
class FoundAnswer:
    """An answer to a question: a part of its context."""

    text: str
    """Empty if the context does not answer the question."""
    score: float
    """Its probability: of the beginning times of the end, in the window where it was found."""
    start: int
    """First character in the context."""
    end: int
    """Character after the last."""


class Answerer(OpenedBundle):
    """A bundle for question-answering opened on one execution provider; with branches every question may use another adapter.

    >>> answerer = Answerer.open("home-bundle")  # doctest: +SKIP
    >>> answerer.answer([("Which lamp is on?", "The desk lamp is on.")])[0][0].text  # doctest: +SKIP
    'desk lamp'
    """

    @staticmethod
    def _check_task(bundle: Bundle) -> None:
        if bundle.task.outputs.kind != "spans":
            raise ConfigError(f"{bundle.path} is for {bundle.task.name} and answers no questions: open it with load().")

    def answer(
        self,
        questions: Sequence[tuple[str, str]],
        adapters: AdapterChoice | Sequence[AdapterChoice] = None,
        *,
        top: int = 1,
        longest: int = LONGEST_ANSWER,
        no_answer: bool | None = None,
        batch_size: int = 32,
    ) -> list[list[FoundAnswer]]:
        """Return the likeliest answers to every question, the best first; at least one.

        Contexts of any length are read, window by window.

        Args:
            questions: pairs of a question and its context.
            adapters: with branches, one choice for all questions or one for each: a name, ``{name: strength}``, or None for the
                base.
            top: most answers to a question.
            longest: most tokens of an answer.
            no_answer: whether "no answer" is an answer too; None allows it to adapters that learned it.
            batch_size: windows computed at once.

        Raises:
            InputError: a question or an adapter cannot be used, or the graph gives no usable scores.
            ConfigError: the choices do not fit the questions, or the bundle is merged and there is nothing to choose.
        """
        if top < 1 or longest < 1:
            raise ConfigError("top and longest must be at least 1.")
        check_inputs(questions, batch_size)
        pairs = [text_or_pair(value) for value in questions]
        for number, pair in enumerate(pairs, 1):
            check_form(pair, "pair", number=number, name=self.bundle.path.name)
        refs = resolve_choices(adapters, len(pairs))
        entries = [self.bundle.adapter(ref.name) if ref else self.bundle.manifest for ref in refs]
        with self._reading:
            windows = [
                self._preprocessor.parts(pair, length=entry.max_length)
                for pair, entry in zip(pairs, entries, strict=True)
            ]
        choices = [ref for ref, parts in zip(refs, windows, strict=True) for _ in parts]
        found = self._run([part for parts in windows for part in parts], choices, batch_size)
        answers = []
        for pair, ref, parts in zip(pairs, refs, windows, strict=True):
            read = [next(found) for _ in parts]
            learned = self.bundle.no_answer(ref.name if ref else None)
            answers.append(
                to_answers(
                    [scores for _, _, scores in read], [row for _, row, _ in read], pair.second, self.bundle,
                    top=top, longest=longest, no_answer=bool(learned if no_answer is None else no_answer),
                )
            )  # fmt: skip
        return answers


def to_answers(
    scores: Sequence[npt.NDArray[Any]],
    rows: Sequence[Arrays],
    context: str,
    bundle: Bundle,
    *,
    top: int = 1,
    longest: int = LONGEST_ANSWER,
    no_answer: bool = False,
) -> list[FoundAnswer]:
    """Return the likeliest answers in a context, the best first.

    Args:
        scores: of the graph for every window, ``[tokens, 2]``; those of padding may follow.
        rows: the windows' arrays.
        context: of the question.
        bundle: that gave the scores, for error messages.
        top: most answers.
        longest: most tokens of an answer.
        no_answer: "no answer" is an answer too.

    Raises:
        InputError: scores are not finite, or not two for every token.
    """
    windows = []
    for output, row in zip(scores, rows, strict=True):
        own = np.asarray(output)[: len(next(iter(row.values())))]
        if own.shape[-1] != 2:
            raise InputError(
                f"The graph of {bundle.path} gives {own.shape[-1]} scores for a token, where answers need two: the bundle is "
                "inconsistent, export it again."
            )
        check_finite(own, bundle)
        windows.append(scored_tokens(own, row))
    spans = best_spans(windows, count=top, longest=longest, may_lack=no_answer)
    return [FoundAnswer(context[span.start : span.end], span.score, span.start, span.end) for span in spans]
