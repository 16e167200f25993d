"""Writing a generated page, or saying that it is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["write_or_check"]


def write_or_check(page: Path, content: str, program: Path, arguments: list[str]) -> int:
    """Write ``content`` to ``page``, or with ``--check`` among the arguments return 1 if that would change it.

    Args:
        page: the file.
        content: what it is to hold.
        program: that generates it, for the message.
        arguments: of its command line.
    """
    if arguments != ["--check"]:
        page.write_text(content, encoding="utf-8")
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == content:
        return 0
    sys.stderr.write(f"{page.name} is out of date. Run:  python docs/reference/{program.name}\n")
    return 1
