"""Sentences drawn from templates."""

from __future__ import annotations

import random

import pytest

from benchmarks.realdata.sentence_templates import draw_sentence, draw_spans, expand_rules


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


def test_spans_are_what_fills_the_slots() -> None:
    values = {"room": ["attic", "guest room[s]"], "name": ["lamp"]}
    draw = random.Random(0)
    seen = set()
    for _ in range(50):
        sentence, spans = draw_spans("[please] dim {name}s in  the {room:area}", values, draw)
        assert [slot for *_, slot in spans] == ["name", "area"]
        (first, end, _), (start, stop, _) = spans
        assert sentence[first:end] == "lamp" and sentence[end] == "s" and sentence[start - 4 : start] == "the "
        seen.add(sentence[start:stop])
    assert seen == {"attic", "guest room", "guest rooms"}
