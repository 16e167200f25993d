"""A Griffe extension: shows the Sphinx roles of docstrings, such as ``:class:`Adapter```, as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


class Roles(griffe.Extension):
    """Rewrites every docstring while the packages are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Keep of each role the name it refers to."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
