"""List types for requests that stop at the first invalid item; a long list would otherwise make an error for each."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import FailFast

__all__ = ["FIRST_ERROR", "Ids", "ManyIds", "Texts"]


class _FirstError(FailFast):
    """Pydantic's ``FailFast`` made hashable, which members of a union must be."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


FIRST_ERROR = _FirstError()

Texts: TypeAlias = Annotated[list[str], FIRST_ERROR]
Ids: TypeAlias = Annotated[list[int], FIRST_ERROR]
ManyIds: TypeAlias = Annotated[list[Ids], FIRST_ERROR]
