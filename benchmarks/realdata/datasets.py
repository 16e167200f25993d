"""The readers by name."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.realdata.example import Example
from benchmarks.realdata.images import animals, mnist
from benchmarks.realdata.intents import home_commands, home_slots, intents
from benchmarks.realdata.questions import home_questions
from benchmarks.realdata.short_texts import editorials, movie_reviews, products, sms_spam, trec, tweets
from benchmarks.realdata.similarity import sts_benchmark
from benchmarks.realdata.topics import diagnoses, health_news, news

__all__ = ["DATASETS", "INSTRUCTIONS", "QUESTIONS", "READERS", "TAGGED"]

DATASETS: dict[str, Callable[..., list[Example]]] = {
    "sms": sms_spam,
    "trec": trec,
    "tweets": tweets,
    "movies": movie_reviews,
    "products": products,
    "editorials": editorials,
    "intents": intents,
    "bbc": news,
    "health": health_news,
    "diagnoses": diagnoses,
    "stsb": sts_benchmark,
    "mnist": mnist,
    "animals": animals,
}
"""Name → reader, which drops repeated inputs unless it is called with ``unique=False``."""

INSTRUCTIONS: dict[str, Callable[[], list[Example]]] = {"home": home_commands}
"""Name → reader of prompts whose labels are the texts that answer them."""

TAGGED: dict[str, Callable[[], list[Example]]] = {"slots": home_slots}
"""Name → reader of texts whose labels are their entities, as JSON ``[[start, end, label], …]``."""

QUESTIONS: dict[str, Callable[[], list[Example]]] = {"questions": home_questions}
"""Name → reader of questions with contexts, whose labels are the right answers, as JSON ``[[start, text], …]``."""

READERS: dict[str, Callable[..., list[Example]]] = {**DATASETS, **INSTRUCTIONS, **TAGGED, **QUESTIONS}
"""All of them."""
