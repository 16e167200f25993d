"""Questions about what several people ask of a home, with the answers in what they say: made from tagged sentences.

There is no free set of questions and answers in the package index, so this one is put together: the contexts are sentences of a
voice assistant's templates, each said by a person, and a question asks for what fills a slot of one person's sentence. A fifth of
the questions have no answer: the person mentions no such thing.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.realdata.example import Example
from benchmarks.realdata.intents import home_slots

__all__ = ["home_questions"]

_PEOPLE = ("Ada", "Bela", "Carmen", "Dmitri", "Emeka", "Fatima", "Goran", "Hanna", "Ines", "Jonas", "Kenji", "Leila")
_ASKED = {
    "name": "device", "area": "room", "floor": "floor", "state": "state", "color": "color", "minutes": "number of minutes",
    "hours": "number of hours", "seconds": "number of seconds", "temperature": "temperature", "brightness": "brightness",
    "volume_level": "volume", "item": "item",
}  # fmt: skip
"""Slot → what a question calls it."""
_BUCKETS = 100
"""Groups of templates: those of one group are in the same contexts, and on one side of a split."""
_OF_A_BUCKET = 30
"""Questions about the sentences of one group."""
_SENTENCES = (2, 8)
"""Fewest and most sentences of a context."""
_UNANSWERABLE = 0.2


def home_questions() -> list[Example]:
    """Return (question, context) with the right answers as JSON ``[[start, text], …]``, empty for a question without answer."""
    buckets: dict[str, list[Example]] = defaultdict(list)
    for example in home_slots():
        buckets[f"templates {random.Random(example.group).randrange(_BUCKETS)}"].append(example)
    made = []
    for group, sentences in sorted(buckets.items()):
        draw = random.Random(group)
        for _ in range(_OF_A_BUCKET):
            made.append(_question(sentences, group, draw))
    return list({example.input: example for example in made}.values())


def _question(sentences: Sequence[Example], group: str, draw: random.Random) -> Example:
    """Return a question about a few of the sentences."""
    count = min(draw.randint(*_SENTENCES), len(sentences))
    people = draw.sample(_PEOPLE, count)
    context, spans = "", dict[str, dict[str, list[list[int | str]]]]()
    for person, sentence in zip(people, draw.sample(list(sentences), count), strict=True):
        context += f"{' ' if context else ''}{person} says: "
        spans[person] = defaultdict(list)
        for start, end, slot in json.loads(str(sentence.label)):
            spans[person][slot].append([len(context) + start, sentence.input[start:end]])
        context += f"{sentence.input}."
    person, lacking = draw.choice(people), draw.random() < _UNANSWERABLE
    slots = [slot for slot in _ASKED if (slot in spans[person]) != lacking]
    slot = draw.choice(slots or list(_ASKED))
    return Example(
        (f"Which {_ASKED[slot]} does {person} mention?", context), json.dumps(spans[person].get(slot, [])), group
    )
