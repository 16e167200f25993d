"""From the cells of one row to the right answers and where they stand in their context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from rmlora.errors import InputError

__all__ = ["Answer", "answers_in", "located"]

_START_KEYS = ("answer_start", "start")


class Answer(NamedTuple):
    """A right answer."""

    text: str
    start: int
    """First character in the context."""

    @property
    def end(self) -> int:
        """Character after the last."""
        return self.start + len(self.text)


def answers_in(cell: Any, start: Any, context: str, *, where: str) -> list[tuple[str, int | None]]:
    """Return the text and, if it is given, the position of each answer in a cell.

    Args:
        cell: a text; ``{"text": …, "answer_start": …}``, each one value or a list; a list of such objects or of texts; one of these
            as JSON, as csv files have it; nothing, an empty text or an empty list if there is no answer.
        start: content of the column ``answer_start``, for a cell that is a text.
        context: where the answers stand; a text that stands there is never read as JSON.
        where: file and row, for error messages.

    Raises:
        InputError: the cell holds something else.
    """
    cell = _from_json(cell, context)
    if cell is None or (isinstance(cell, float) and cell != cell):
        return []
    if isinstance(cell, Mapping):
        texts: Any = cell.get("text")
        starts: Any = next((cell[key] for key in _START_KEYS if key in cell), None)
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, Integral) else starts
        if not _is_list(texts) or (starts is not None and (not _is_list(starts) or len(starts) != len(texts))):
            raise InputError(
                f"{where} has the answer {str(cell)[:80]}, which lacks something: write text, and answer_start for each text."
            )
        items: list[Any] = list(zip(texts, starts if starts is not None else [None] * len(texts), strict=True))
    elif isinstance(cell, str):
        items = [(cell, start)]
    elif _is_list(cell):
        return [item for part in cell for item in answers_in(part, None, context, where=where)]
    else:
        raise InputError(f"{where} has the answer {str(cell)[:40]!r}, where a text belongs: write its words.")
    return [
        _checked(text, position, where) for text, position in items if not (isinstance(text, str) and not text.strip())
    ]


def _from_json(cell: Any, context: str) -> Any:
    """Return what a cell that is JSON stands for, and any other cell as it is."""
    if not isinstance(cell, str) or cell.lstrip()[:1] not in ("{", "[") or cell.strip() in context:
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, Mapping))


def _checked(text: Any, start: Any, where: str) -> tuple[str, int | None]:
    if not isinstance(text, str):
        raise InputError(f"{where} has the answer {str(text)[:40]!r}, where a text belongs: write its words.")
    if start is None or (isinstance(start, float) and start != start):
        return text, None
    try:
        number = int(start)
        whole = number >= 0 and number == float(start) and not isinstance(start, bool)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise InputError(
            f"{where} has the position {str(start)[:20]!r}: answer_start counts characters of the context from 0."
        )
    return text, number


def located(answers: Sequence[tuple[str, int | None]], context: str, *, where: str) -> tuple[tuple[Answer, ...], int]:
    """Return answers with their positions, without white space at both ends, and how many were looked for.

    An answer without a position, or whose words do not stand there, is taken where they first occur.

    Raises:
        InputError: an answer does not occur in its context.
    """
    found, looked_for = [], 0
    for text, start in answers:
        if start is None or context[start : start + len(text)] != text:
            looked_for += 1
            start = context.find(text.strip())
            if start < 0:
                raise InputError(
                    f"{where} has the answer {text[:60]!r}, which does not occur in its context: an answer is a part of the context, "
                    "in the same letters."
                )
            text = text.strip()
        begin = start + len(text) - len(text.lstrip())
        found.append(Answer(text.strip(), begin))
    return tuple(dict.fromkeys(found)), looked_for
