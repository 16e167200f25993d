"""Lists in requests of which the first wrong item is enough to refuse them: a large one would bring an error for each."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import FailFast

__all__ = ["FIRST_ERROR", "Ids", "ManyIds", "Texts"]


class _FirstError(FailFast):
    """As pydantic's, but it can stand in a union, whose members are hashed."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


FIRST_ERROR = _FirstError()

Texts: TypeAlias = Annotated[list[str], FIRST_ERROR]
Ids: TypeAlias = Annotated[list[int], FIRST_ERROR]
ManyIds: TypeAlias = Annotated[list[Ids], FIRST_ERROR]
