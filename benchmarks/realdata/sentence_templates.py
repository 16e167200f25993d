"""Draw sentences from templates such as ``[please] turn (on|off) [<the>] {name}``.

``[a]`` may be left out, ``(a|b)`` is one of its parts, ``(a;b)`` all of them in any order, ``<rule>`` stands for another
template and ``{list:slot}`` for a value of a list.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

__all__ = ["draw_sentence", "expand_rules"]

_RULE = re.compile(r"<(\w+)>")
_INNERMOST = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)(?::\w+)?\}")


def expand_rules(template: str, rules: Mapping[str, str]) -> str:
    """Replace the rules in ``template``, and those in them, by what they stand for."""
    while _RULE.search(template):
        template = _RULE.sub(lambda match: f"({rules[match[1]]})", template)
    return template


def draw_sentence(template: str, values: Mapping[str, Sequence[str]], draw: random.Random) -> str:
    """Return one sentence of a template without rules; a slot's value may be a template too.

    Args:
        template: what :func:`expand_rules` returns.
        values: list → what may stand in its slots.
        draw: decides.
    """
    while _INNERMOST.search(template):
        template = _INNERMOST.sub(lambda match: _chosen(match, draw), template)
    filled = _SLOT.sub(lambda match: draw_sentence(draw.choice(values[match[1]]), values, draw), template)
    return " ".join(filled.split())


def _chosen(match: re.Match[str], draw: random.Random) -> str:
    required, optional = match.groups()
    if optional is not None and draw.random() < 0.5:
        return ""
    parts = draw.choice((optional if required is None else required).split("|")).split(";")
    return " ".join(draw.sample(parts, len(parts))) if len(parts) > 1 else parts[0]
