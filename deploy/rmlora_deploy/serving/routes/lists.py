"""List types for requests, which stop at the first invalid item; a long list would otherwise make an error for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from pydantic import FailFast

from rmlora.errors import InputError
from rmlora.text_pair import TextPair

__all__ = ["FIRST_ERROR", "Ids", "Texts", "TextsOrPairs", "texts_and_pairs"]


class _FirstError(FailFast):
    """Pydantic's ``FailFast`` made hashable, which members of a union must be."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


FIRST_ERROR = _FirstError()

Texts: TypeAlias = Annotated[list[str], FIRST_ERROR]
TextsOrPairs: TypeAlias = Annotated[list[str | Texts], FIRST_ERROR]
Ids: TypeAlias = Annotated[list[int], FIRST_ERROR]


def texts_and_pairs(given: Sequence[str | Sequence[str]]) -> list[str | TextPair]:
    """Return texts as they are, and lists of two texts as pairs.

    Raises:
        InputError: a list has one text, or more than two.
    """
    wrong = next((number for number, item in enumerate(given, 1) if not isinstance(item, str) and len(item) != 2), None)
    if wrong is not None:
        raise InputError(
            f"Input {wrong} is a list of {len(given[wrong - 1])}: give one text, or a list of two as a pair."
        )
    return [item if isinstance(item, str) else TextPair(*item) for item in given]
