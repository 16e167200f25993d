"""A Griffe extension that turns what Markdown does not know in our docstrings into Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
"""A Sphinx role such as ``:class:`Adapter```: its target is shown as code."""
PROMPT = re.compile(r"^(?=>>> |\.\.\. )", re.MULTILINE)
"""A line of a session at the left margin, which Markdown would take for a quotation: it becomes code by indentation."""


class Docstrings(griffe.Extension):
    """Rewrites every docstring when the packages are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj``, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = PROMPT.sub("    ", ROLE.sub(r"`\1`", obj.docstring.value))
