"""Which columns hold the texts of pairs and triplets to embed, and the scores of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rmlora.errors import ConfigError, InputError, some_of
from rmlora.text_pair import PAIR_COLUMNS
from rmlora.training.input_columns import find_column
from rmlora.training.table import Table

__all__ = ["KNOWN_NAMES", "EmbeddingColumns", "RowKind", "find_columns"]

RowKind: TypeAlias = Literal["scored pairs", "pairs", "triplets"]
"""What a row is: two texts and how similar they are, two texts that belong together, or these and one that does not."""

_PAIRS = (
    ("anchor", "positive"), ("query", "positive"), ("question", "positive"), ("query", "answer"), ("question", "context"),
    *PAIR_COLUMNS,
)  # fmt: skip
_SCORES = ("score", "similarity_score", "similarity", "relatedness_score", "label")
_NEGATIVES = ("negative", "hard_negative")
KNOWN_NAMES = {*_SCORES, *_NEGATIVES, *(name for pair in _PAIRS for name in pair)}
"""Names of columns that are recognized, in lower case."""


@dataclass(frozen=True)
class EmbeddingColumns:
    """Names of columns: as the user chose them, where None looks for the usual names, or as they were found."""

    first: str | None = None
    second: str | None = None
    negative: str | None = None
    """Of texts that do not belong to the first."""
    score: str | None = None

    @property
    def texts(self) -> list[str]:
        """Those that hold texts."""
        return [name for name in (self.first, self.second, self.negative) if name is not None]

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.texts, *([self.score] if self.score is not None else [])]

    @property
    def kind(self) -> RowKind:
        """What the rows of these columns are."""
        if self.score is not None:
            return "scored pairs"
        return "pairs" if self.negative is None else "triplets"


def find_columns(table: Table, chosen: EmbeddingColumns, source: str) -> EmbeddingColumns:
    """Return the columns that are meant; what is not chosen is recognized by its name.

    Args:
        table: the data.
        chosen: by the user.
        source: where the data is.

    Raises:
        ConfigError: both a score and a negative are chosen.
        InputError: a column is missing, or it is not clear which are meant.
    """
    if chosen.score is not None and chosen.negative is not None:
        raise ConfigError(
            "--label-column names scores of pairs and --negative-column makes triplets, which have none: leave one of them out."
        )
    first, second = _texts(table, chosen, source)
    negative, score = chosen.negative, chosen.score
    if negative is not None:
        negative = find_column(table, negative, (), "--negative-column", source)
    elif score is not None:
        score = find_column(table, score, (), "--label-column", source)
    else:
        negative = _recognized_negative(table, (first, second), source)
        score = _recognized_score(table, (first, second), source)
        _refuse_contradictions((first, second), negative, score, source)
    found = EmbeddingColumns(first, second, negative, score)
    if (twice := next((name for name in found.names if found.names.count(name) > 1), None)) is not None:
        raise InputError(
            f"'{twice}' of {source} is meant to be two columns of a row: name another one with "
            f"{'--negative-column' if twice == negative else '--label-column'}."
        )
    return found


def _texts(table: Table, chosen: EmbeddingColumns, source: str) -> tuple[str, str]:
    if (chosen.first is None) != (chosen.second is None):
        raise InputError(
            "--text-column names the first text of every row and --pair-column the second: name both of them, or neither."
        )
    if chosen.first is not None:
        first = find_column(table, chosen.first, (), "--text-column", source)
        second = find_column(table, chosen.second, (), "--pair-column", source)
        if first == second:
            raise InputError(f"--text-column and --pair-column both name '{first}': name two columns.")
        return first, second
    lower = _by_lower_name(table)
    pairs = [pair for pair in _PAIRS if all(name in lower for name in pair)]
    if len(pairs) == 1:
        return lower[pairs[0][0]], lower[pairs[0][1]]
    several = " or ".join(f"'{one}' and '{other}'" for one, other in pairs)
    raise InputError(
        f"It is not clear which columns of {source} hold the two texts of a row (it has {some_of(list(table.columns))}"
        f"{f'; they could be {several}' if several else ''}): name them with --text-column and --pair-column."
    )


def _recognized_negative(table: Table, texts: Sequence[str], source: str) -> str | None:
    lower = _by_lower_name(table, but=texts)
    found = [lower[name] for name in _NEGATIVES if name in lower]
    others = [name for name in table.columns if name.lower().startswith(_NEGATIVES) and name not in texts]
    if len(found) > 1 or (others and not found):
        raise InputError(
            f"{source} has the columns {' and '.join(repr(name) for name in found or others)}, and one negative for a row is learned: "
            "choose it with --negative-column."
        )
    return found[0] if found else None


def _recognized_score(table: Table, texts: Sequence[str], source: str) -> str | None:
    lower = _by_lower_name(table, but=texts)
    found = [lower[name] for name in _SCORES if name in lower]
    if len(found) > 1:
        raise InputError(
            f"{source} has the columns {' and '.join(repr(name) for name in found)}: choose the scores with --label-column."
        )
    return found[0] if found else None


def _refuse_contradictions(texts: tuple[str, str], negative: str | None, score: str | None, source: str) -> None:
    if score is None:
        return
    first, second = texts
    if negative is not None:
        raise InputError(
            f"{source} has negatives in '{negative}' and scores in '{score}': choose what is learned with --negative-column or "
            "--label-column."
        )
    if second.lower() == "positive":
        raise InputError(
            f"{source} says with '{second}' that the texts of every row belong together, and with '{score}' how well: pass "
            f"--label-column {score} to learn scores, or remove that column."
        )
    if (first.lower(), score.lower()) == ("premise", "label"):
        raise InputError(
            f"'{score}' beside '{first}' and '{second}' in {source} is mostly one of three classes, whose numbers are no scores: pass "
            f"--label-column {score} if a higher one means more similar texts, or make pairs or triplets of the rows."
        )


def _by_lower_name(table: Table, *, but: Sequence[str] = ()) -> dict[str, str]:
    return {name.lower(): name for name in reversed(list(table.columns)) if name not in but}
