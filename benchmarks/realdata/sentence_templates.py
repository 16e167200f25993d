"""Draw sentences from templates such as ``[please] turn (on|off) [<the>] {name}``.

``[a]`` may be left out, ``(a|b)`` is one of its parts, ``(a;b)`` all of them in any order, ``<rule>`` stands for another
template and ``{list:slot}`` for a value of a list.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

__all__ = ["draw_filled", "draw_sentence", "draw_spans", "expand_rules"]

_RULE = re.compile(r"<(\w+)>")
_INNERMOST = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
_BEGIN, _END = "\x02", "\x03"
"""Characters around the value of a slot while a sentence is drawn."""


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
    return draw_filled(template, values, draw)[0]


def draw_filled(
    template: str, values: Mapping[str, Sequence[str]], draw: random.Random
) -> tuple[str, dict[str, tuple[str, str]]]:
    """Return a sentence as :func:`draw_sentence` does, and slot → (list, value) for every slot that was filled."""
    marked, slots = _drawn(template, values, draw)
    return marked.replace(_BEGIN, "").replace(_END, ""), {slot: (name, value) for slot, name, value in slots}


def draw_spans(
    template: str, values: Mapping[str, Sequence[str]], draw: random.Random
) -> tuple[str, list[tuple[int, int, str]]]:
    """Return a sentence as :func:`draw_sentence` does, and (start, end, slot) of the characters that fill its slots."""
    marked, slots = _drawn(template, values, draw)
    sentence, spans, start = "", [], 0
    for part in re.split(f"([{_BEGIN}{_END}])", marked):
        if part == _BEGIN:
            start = len(sentence)
        elif part == _END:
            spans.append((start, len(sentence), slots[len(spans)][0]))
        else:
            sentence += part
    return sentence, spans


def _drawn(
    template: str, values: Mapping[str, Sequence[str]], draw: random.Random
) -> tuple[str, list[tuple[str, str, str]]]:
    """Return a sentence with marks around what fills a slot, and (slot, list, value) of each in order."""
    while _INNERMOST.search(template):
        template = _INNERMOST.sub(lambda match: _chosen(match, draw), template)
    slots: list[tuple[str, str, str]] = []

    def fill(match: re.Match[str]) -> str:
        value = draw.choice(values[match[1]])
        slots.append((match[2] or match[1], match[1], value))
        return f"{_BEGIN}{draw_sentence(value, values, draw)}{_END}"

    return " ".join(_SLOT.sub(fill, template).split()), slots


def _chosen(match: re.Match[str], draw: random.Random) -> str:
    required, optional = match.groups()
    if optional is not None and draw.random() < 0.5:
        return ""
    parts = draw.choice((optional if required is None else required).split("|")).split(";")
    return " ".join(draw.sample(parts, len(parts))) if len(parts) > 1 else parts[0]
