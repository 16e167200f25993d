"""Tags of words and the entities that they mark (no torch).

A tag may have a prefix: ``B-`` begins an entity and ``I-`` continues it (IOB2); in larger schemes ``E-`` or ``L-`` ends it, and
``S-`` or ``U-`` is one word long. ``O`` is outside of all. Tags without prefixes, such as parts of speech, mark single words;
neighbors with the same tag are one entity, as in transformers' pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["OUTSIDE", "Entity", "TagScheme"]

OUTSIDE = "O"
"""Tag of words that belong to no entity."""

_BEGINS, _ENDS = frozenset("BSU"), frozenset("ESLU")
_PREFIXES = frozenset("BIESLU")


@dataclass(frozen=True)
class Entity:
    """Neighboring words, or tokens, with one label."""

    label: str
    start: int
    """Index of the first."""
    stop: int
    """Index after the last."""


@dataclass(frozen=True)
class TagScheme:
    """How the tags of a model are read."""

    prefixed: bool
    """True if tags have prefixes."""

    @classmethod
    def of(cls, tags: Iterable[str]) -> TagScheme:
        """Return the scheme of a model's labels: prefixes count only if all tags but ``O`` have one."""
        others = [tag for tag in tags if tag != OUTSIDE]
        return cls(bool(others) and all(tag[:1] in _PREFIXES and tag[1:2] == "-" and tag[2:] for tag in others))

    def split(self, tag: str) -> tuple[str, str]:
        """Return the prefix of a tag and its label; without a prefix it is ``I``."""
        if self.prefixed and tag != OUTSIDE:
            return tag[0], tag[2:]
        return "I", tag

    def labels(self, tags: Iterable[str]) -> list[str]:
        """Return the labels that tags name, in the order of their first tags and without ``O``."""
        return list(dict.fromkeys(self.split(tag)[1] for tag in tags if tag != OUTSIDE))

    def entities(self, tags: Sequence[str]) -> list[Entity]:
        """Return the entities that the tags of a row mark, in order.

        A tag that continues an entity of another label, or none, begins one: models do not always keep to the scheme.
        """
        found: list[Entity] = []
        closed = True
        """True if the next tag cannot continue the last entity."""
        for index, tag in enumerate(tags):
            if tag == OUTSIDE:
                closed = True
                continue
            prefix, label = self.split(tag)
            if closed or prefix in _BEGINS or found[-1].label != label:
                found.append(Entity(label, index, index + 1))
            else:
                found[-1] = Entity(label, found[-1].start, index + 1)
            closed = prefix in _ENDS
        return found
