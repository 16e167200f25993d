"""What a sentence asks of a home: made from the sentence templates of a voice assistant."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from benchmarks.assets import package_directory
from benchmarks.realdata.example import Example, unique_inputs
from benchmarks.realdata.sentence_templates import draw_sentence, expand_rules
from benchmarks.realdata.slot_values import NAMES, NUMBERS, VALUES

__all__ = ["intents"]

_OF_A_TEMPLATE = 24
_OF_AN_INTENT = 360
"""The largest numbers of sentences. Timers have up to 100 templates, most other intents fewer than ten."""
_FEWEST_TEMPLATES = 4
_FEWEST_SENTENCES = 30
"""An intent with less is left out: it could not be in training, validation and test."""


def intents(*, unique: bool = True) -> list[Example]:
    """Return English sentences with the intent they express; sentences of one template are a group.

    The templates' slots are filled with the names, areas and numbers of a home. A sentence that templates of two intents
    allow is dropped.
    """
    data = json.loads((package_directory("home_assistant_intents") / "data" / "en.json").read_text(encoding="utf-8"))
    examples = [example for intent in data["intents"] for example in _sentences(intent, data)]
    if not unique:
        return examples
    return _large_enough(unique_inputs(examples))


def _sentences(intent: str, data: dict[str, Any]) -> Iterator[Example]:
    templates = [(template, block) for block in data["intents"][intent]["data"] for template in block["sentences"]]
    wanted = min(_OF_A_TEMPLATE, max(4, _OF_AN_INTENT // len(templates)))
    for number, (template, block) in enumerate(templates):
        draw = random.Random(f"{intent} {number}")
        values = _slot_values(data["lists"], (block.get("requires_context") or {}).get("domain"))
        expanded = expand_rules(template, data["expansion_rules"])
        drawn = dict.fromkeys(draw_sentence(expanded, values, draw) for _ in range(4 * wanted))
        for sentence in list(drawn)[:wanted]:
            yield Example(sentence, intent.removeprefix("Hass"), template)


def _slot_values(lists: dict[str, Any], domains: str | list[str] | None) -> dict[str, list[str]]:
    """Return what each slot may hold: our values, else the numbers or words that the templates' authors give."""
    values = {name: [item["in"] for item in entry["values"]] for name, entry in lists.items() if "values" in entry}
    percent = {name: [str(n) for n in range(0, 101, 5)] for name, entry in lists.items() if "range" in entry}
    numbers = {name: [str(n) for n in span] for name, span in NUMBERS.items()}
    named = [domains] if isinstance(domains, str) else domains or ["light"]
    return {**percent, **values, **numbers, **VALUES, "name": [name for domain in named for name in NAMES[domain]]}


def _large_enough(examples: list[Example]) -> list[Example]:
    groups: dict[str | float, set[str | None]] = defaultdict(set)
    counts: dict[str | float, int] = defaultdict(int)
    for example in examples:
        groups[example.label].add(example.group)
        counts[example.label] += 1
    kept = {label for label in counts if len(groups[label]) >= _FEWEST_TEMPLATES and counts[label] >= _FEWEST_SENTENCES}
    return [example for example in examples if example.label in kept]
