"""Writing Markdown from values that come from files: they are shown as they are, and never become markup."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["bars", "code", "escaped", "facts", "front_matter", "one_line", "table"]

_MARKUP = re.compile(r"([\\`*_\[\]<>#!|~$&@]|:(?=//)|(?<=www)\.)")
"""What begins markup inside a line; GitHub makes links of bare addresses too."""
_BARS = "▁▂▃▄▅▆▇█"


def one_line(value: object) -> str:
    """Return a value as text of one line; control characters are left out."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())


def escaped(value: object) -> str:
    """Return a value as Markdown text of one line; control characters are left out."""
    return _MARKUP.sub(r"\\\1", one_line(value))


def code(value: object) -> str:
    """Return a value as a code span, which no character in it can end."""
    return f"`{one_line(value).replace('`', chr(39)).replace('|', '¦')}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table and an empty one after it; cells are Markdown. Columns without any value are left out."""
    kept = [place for place in range(len(head)) if any(row[place] for row in rows) or not rows]
    lines = [[head[place] for place in kept], ["---" for _ in kept], *([row[place] for place in kept] for row in rows)]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def facts(values: Mapping[str, str | None]) -> list[str]:
    """Return the lines of a table of two columns; values are Markdown, and those that are None or empty are left out."""
    return table(["", " "], [[name, value] for name, value in values.items() if value])


def front_matter(values: Mapping[str, Any]) -> str:
    """Return the block of YAML with which the Hugging Face hub finds models; values are quoted as JSON, which is YAML."""
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return "---\n" + "".join(lines) + "---\n"


def bars(values: Sequence[float]) -> str:
    """Return a bar for each value, as high as its share of the largest."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return ""
    return "".join(_BARS[min(len(_BARS) - 1, int(len(_BARS) * value / largest))] for value in values)
