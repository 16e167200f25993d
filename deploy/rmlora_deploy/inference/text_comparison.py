"""Several language models, or adapters of one, asked the same: their texts, where these part, and how many are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rmlora.training.answer_metrics import AnswerMetric, check_metric, score_answers
from rmlora_deploy.inference.generator import Generated, Generator
from rmlora_deploy.inference.questions import Question

__all__ = ["Contestant", "Standing", "TextComparison", "compare_texts", "first_difference"]


@dataclass(frozen=True)
class Contestant:
    """Who is asked: a merged bundle, a bundle's adapter, or its base."""

    name: str
    generator: Generator
    adapter: str | None = None


@dataclass(frozen=True)
class Standing:
    """What one contestant reached on all questions."""

    agreement: float
    """Share of answers whose text is the first contestant's."""
    tokens: int
    seconds: float
    """Time that all answers took, prompts included."""
    scores: dict[str, float]
    """Metric → figure from 0 to 1; empty without right answers."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answers per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TextComparison:
    """The answers of all contestants."""

    questions: list[Question]
    answers: dict[str, list[Generated]]
    """Contestant → its answers, in the order of the questions."""
    standings: dict[str, Standing]

    def of(self, row: int) -> dict[str, Generated]:
        """Return contestant → answer to one question."""
        return {name: answers[row] for name, answers in self.answers.items()}

    def agrees(self, row: int) -> bool:
        """Return True if all contestants give the same text."""
        return len({answer.text for answer in self.of(row).values()}) == 1

    @property
    def agreeing(self) -> int:
        """Number of questions to which all contestants give the same text."""
        return sum(self.agrees(row) for row in range(len(self.questions)))


def compare_texts(
    contestants: Sequence[Contestant],
    questions: Sequence[Question],
    *,
    metric: AnswerMetric = "exact_match",
    batch_size: int = 8,
    on_progress: Callable[[str], None] | None = None,
    **options: Any,
) -> TextComparison:
    """Ask all contestants everything, one contestant after the other.

    Args:
        contestants: two or more, of different names; the first is what the others are compared with.
        questions: at least one.
        metric: how answers are compared with right ones, where all questions have one.
        batch_size: questions answered at once.
        on_progress: called with the name of the contestant that is asked next.
        options: ``max_new_tokens``, ``raw`` and ``sampling`` of :meth:`Generator.generate`.

    Raises:
        InputError: a prompt cannot be used.
        ConfigError: an option does not fit a contestant.
        DependencyError: the metric needs a package that is not installed.
    """
    check_metric(metric)
    answers: dict[str, list[Generated]] = {}
    seconds: dict[str, float] = {}
    for contestant in contestants:
        if on_progress is not None:
            on_progress(contestant.name)
        generate, adapter = contestant.generator.generate, contestant.adapter
        prompts = [question.prompt for question in questions]
        generate(
            prompts[:1], adapter, **{**options, "max_new_tokens": 1}
        )  # reads the adapter, which is not part of the time
        began = time.perf_counter()
        answers[contestant.name] = generate(prompts, adapter, batch_size=batch_size, **options)
        seconds[contestant.name] = time.perf_counter() - began
    first = answers[contestants[0].name]
    references = [question.reference for question in questions if question.reference is not None]

    def standing(name: str) -> Standing:
        own = answers[name]
        scored = len(references) == len(questions)
        same = sum(answer.text == other.text for answer, other in zip(own, first, strict=True))
        return Standing(
            same / len(own), sum(len(answer.tokens) for answer in own), seconds[name],
            score_answers(metric, [answer.text for answer in own], references) if scored else {},
        )  # fmt: skip

    return TextComparison(list(questions), answers, {name: standing(name) for name in answers})


def first_difference(one: str, other: str) -> int | None:
    """Return the position of the first character in which two texts differ; None if they are the same."""
    if one == other:
        return None
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)
