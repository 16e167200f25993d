"""What a sentence asks of a home, as a label, as JSON or as tagged words: made from the sentence templates of a voice assistant."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.assets import package_directory
from benchmarks.realdata.example import Example, unique_inputs
from benchmarks.realdata.sentence_templates import draw_filled, draw_sentence, draw_spans, expand_rules
from benchmarks.realdata.slot_values import NAMES, NUMBERS, VALUES

__all__ = ["home_commands", "home_slots", "intents"]

_OF_A_TEMPLATE = 24
_OF_AN_INTENT = 360
"""The largest numbers of sentences. Timers have up to 100 templates, most other intents fewer than ten."""
_FEWEST_TEMPLATES = 4
_FEWEST_SENTENCES = 30
"""An intent with less is left out: it could not be in training, validation and test."""
_OF_A_COMMAND = 4
"""The largest number of sentences of a template whose answer is JSON: values vary more than a language model needs."""


def intents(*, unique: bool = True) -> list[Example]:
    """Return English sentences with the intent they express; sentences of one template are a group.

    The templates' slots are filled with the names, areas and numbers of a home. A sentence that templates of two intents
    allow is dropped.
    """
    data = _data()
    examples = [example for intent in data["intents"] for example in _sentences(intent, data)]
    if not unique:
        return examples
    return _large_enough(unique_inputs(examples))


def home_commands() -> list[Example]:
    """Return English sentences with the command they give as JSON, such as ``{"intent":"TurnOn","area":"kitchen"}``.

    The command has the intent, the values of the template's slots, and those that the template's authors fix (as the
    domain). Sentences of one template are a group. A sentence that templates of two commands allow is dropped, and so is a
    shape of commands (intent, slots and fixed values) with fewer templates than training, validation and test need.
    """
    data = _data()
    made = [example for intent in data["intents"] for example in _commands(intent, data)]
    shape_of = {(example.input, example.group): shape for example, shape in made}
    templates: dict[str, set[str | None]] = defaultdict(set)
    examples = unique_inputs([example for example, _ in made])
    for example in examples:
        templates[shape_of[example.input, example.group]].add(example.group)
    return [
        example for example in examples if len(templates[shape_of[example.input, example.group]]) >= _FEWEST_TEMPLATES
    ]


def home_slots() -> list[Example]:
    """Return English sentences with what fills the slots of their template, as JSON ``[[start, end, slot], …]`` in characters.

    Sentences of one template are a group. A sentence that two templates fill differently is dropped, and so is one with a
    slot that fewer templates have than training, validation and test need.
    """
    data = _data()
    examples = unique_inputs([example for intent in data["intents"] for example in _tagged(intent, data)])
    templates: dict[str, set[str | None]] = defaultdict(set)
    for example in examples:
        for slot in _slots_of(example):
            templates[slot].add(example.group)
    return [
        example for example in examples
        if all(len(templates[slot]) >= _FEWEST_TEMPLATES for slot in _slots_of(example))
    ]  # fmt: skip


def _slots_of(example: Example) -> list[str]:
    return [slot for _, _, slot in json.loads(str(example.label))]


def _tagged(intent: str, data: dict[str, Any]) -> Iterator[Example]:
    """Yield sentences with the characters that fill the slots of their template."""
    templates = [(template, block) for block in data["intents"][intent]["data"] for template in block["sentences"]]
    for number, (template, block) in enumerate(templates):
        draw = random.Random(f"{intent} {number} slots")
        values = _slot_values(data["lists"], (block.get("requires_context") or {}).get("domain"))
        expanded = expand_rules(template, data["expansion_rules"])
        drawn = dict(draw_spans(expanded, values, draw) for _ in range(4 * _OF_A_COMMAND))
        for sentence, spans in list(drawn.items())[:_OF_A_COMMAND]:
            yield Example(sentence, json.dumps(spans), template)


def _commands(intent: str, data: dict[str, Any]) -> Iterator[tuple[Example, str]]:
    """Yield sentences with their command, and the shape of the command."""
    templates = [(template, block) for block in data["intents"][intent]["data"] for template in block["sentences"]]
    for number, (template, block) in enumerate(templates):
        draw = random.Random(f"{intent} {number} command")
        values = _slot_values(data["lists"], (block.get("requires_context") or {}).get("domain"))
        expanded, fixed = expand_rules(template, data["expansion_rules"]), block.get("slots") or {}
        seen: set[str] = set()
        for _ in range(4 * _OF_A_COMMAND):
            sentence, slots = draw_filled(expanded, values, draw)
            if sentence in seen or len(seen) == _OF_A_COMMAND:
                continue
            seen.add(sentence)
            filled = {slot: _meaning(data["lists"], *chosen) for slot, chosen in slots.items()}
            command = {"intent": intent.removeprefix("Hass"), **dict(sorted({**fixed, **filled}.items()))}
            shape = json.dumps([intent, fixed, sorted(slots)], sort_keys=True)
            yield Example(sentence, json.dumps(command, ensure_ascii=False, separators=(",", ":")), template), shape


def _meaning(lists: Mapping[str, Any], name: str, value: str) -> Any:
    """Return what a value of a list means: what its authors say, else the number or the words themselves."""
    entry = lists.get(name, {})
    meant = next((item["out"] for item in entry.get("values", ()) if item["in"] == value), value)
    if isinstance(meant, str) and meant.isdigit():
        return int(meant) * entry.get("range", {}).get("multiplier", 1)
    return meant


def _data() -> dict[str, Any]:
    file = package_directory("home_assistant_intents") / "data" / "en.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


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
