"""Sentences drawn from templates."""

from __future__ import annotations

import random

import pytest

from benchmarks.realdata.sentence_templates import draw_sentence, expand_rules


@pytest.mark.parametrize(
    ("template", "sentences"),
    [
        ("turn (on|off) it", {"turn on it", "turn off it"}),
        ("fan[s] [now]", {"fan", "fans", "fan now", "fans now"}),
        ("two(-| )hour[s|ly]", {f"two{gap}hour{end}" for gap in "- " for end in ("", "s", "ly")}),
        ("pause (it;[in] here)", {"pause it in here", "pause it here", "pause in here it", "pause here it"}),
        ("((a|b)|[c] d)", {"a", "b", "c d", "d"}),
        (
            "<turn> {room:area}",
            {f"{verb} {room}" for verb in ("turn", "switch on") for room in ("attic", "den", "dens")},
        ),
    ],
)
def test_every_sentence_of_a_template_is_drawn_and_no_other(template: str, sentences: set[str]) -> None:
    rules = {"turn": "(turn|<switch>)", "switch": "switch on"}
    values = {"room": ["attic", "den[s]"]}
    draw = random.Random(0)
    expanded = expand_rules(template, rules)
    assert {draw_sentence(expanded, values, draw) for _ in range(200)} == sentences
