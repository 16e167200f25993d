"""Changes of a YAML document: its values, its text, and what only YAML has: aliases, tags, types that look like others."""

from __future__ import annotations

import random

import yaml

from benchmarks.fuzz.mutations import change_text, change_value

__all__ = ["change_yaml"]

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
_LINES = (
    "epochs: *nowhere", "rank: !!python/object/apply:os.system ['true']", "seed: 0o17", "seed: 12:30:45", "rank: yes", "epochs: .nan",
    "epochs: .inf", "rank: 2001-01-01", "2001-01-01: 3", "? [a, b]\n: c", "null: 1", "text-column: !!binary aGk=", "rank: !!set {1, 2}",
    "<<: {rank: 4}", "<<: 3", "rank: 4\nrank: 5", "[a]: 1", "output: |\n  a\n  b", "- x", "%YAML 9.9", "---\nrank: 1\n---\nrank: 2", "\trank: 3",
    "config: other.yaml", "as_json: true", "help: true", "resume: maybe", "overwrite: [1]", "rank-pattern: {query: 4}", "rank-pattern: query=x",
    "target-modules: all-linear", "target-modules: 7", "target-modules: [[a]]", "alpha-pattern: [1, 2]", "alpha-pattern: [query=nan]",
    "rank-pattern: [query=inf]", "rank: 99999999999999999999", "base: \"a\\0b\"", "base: [x]", "train: {a: 1}", "seed: -5", "output: ''",
    "epochs: 1e400", "run-dir: \"\\0\"", "method: lora", "batch_size: 0", "x: " + "[" * 3000, "x: " + "{a: " * 3000, _BOMB,
)  # fmt: skip


def change_yaml(rng: random.Random, content: bytes) -> bytes:
    """Change a YAML document."""
    kind = rng.randrange(4)
    if kind == 0:
        value = yaml.safe_load(content)
        for _ in range(rng.choice((1, 1, 2))):
            value = change_value(rng, value)
        return str(yaml.safe_dump(value, allow_unicode=True)).encode(errors="surrogatepass")
    if kind == 1:
        lines = content.decode().splitlines()
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(_LINES))
        return "\n".join(lines).encode()
    if kind == 2:
        name = rng.choice(_LINES).partition(":")[0]
        kept = [line for line in content.decode().splitlines() if not line.startswith(name)]
        return "\n".join([*kept, rng.choice(_LINES)]).encode()
    return change_text(rng, content)
