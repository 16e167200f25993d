"""Seeded changes of bytes, texts and JSON values; each takes a random generator and returns changed content."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

__all__ = [
    "HOSTILE",
    "Mutation",
    "any_of",
    "change_bytes",
    "change_json",
    "change_small_file",
    "change_text",
    "change_value",
    "numbers_in_bytes",
]

Mutation = Callable[[random.Random, bytes], bytes]
"""Returns changed content of a file."""

_INTEGERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**40,
)
_STRINGS = (
    "", " ", "\n", "\0", "a" * 70_000, "../../etc/passwd", "/dev/zero", "/etc", ".", "..", "%s%n", "{}", "[bold]", "[/x]", "\x1b[2J", "$(id)", "é" * 50,
    "\ud800", "\u202e", "nan", "inf", "-1", "0", "1e999", "true", "null", "(a+)+b", "(", "[", "*", "(?<=x", "a.b.c", "\\", "http://x/y",
    "float32", "LORA", "SEQ_CLS", "torch.float16", "text-classification", "bert", "cls", "0" * 5000,
)  # fmt: skip
HOSTILE: tuple[Any, ...] = (
    *_INTEGERS, *_STRINGS, None, True, False, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), [], {}, [[]],
    [None], [1, 2, 3], ["a", "b"], [0.5], {"": ""}, {"a": 1}, {"a": {"b": {}}}, [{}], ["x"] * 300, {str(n): n for n in range(300)},
)  # fmt: skip
"""Values to put where another is expected."""

_RAW_VALUES = (
    "1e999999", "9" * 5000, "-" + "9" * 400, "1.7976931348623159e308", "NaN", "-Infinity", '"\\ud800"', "[" * 2000 + "]" * 2000,
    "[" * 200_000, '{"a":' * 100_000, "{" + '"a":1,' * 2000 + '"a":2}', "'single'", "tru", "0x10", "1_000", '"\\q"', '"\t"', "",
)  # fmt: skip
"""Texts to put where a JSON value is expected."""


def any_of(*mutations: tuple[int, Mutation]) -> Mutation:
    """Return a mutation that applies one of several, drawn with these weights."""
    weights, choices = zip(*mutations, strict=True)

    def mutate(rng: random.Random, content: bytes) -> bytes:
        return rng.choices(choices, weights)[0](rng, content)

    return mutate


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, insert, repeat and move bytes, one to eight times."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + rng.choice((1, 4, 8, 100))]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 100)))
        elif kind == 3:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.choice((1, 8, 64, 1000))]
        elif kind == 4:
            data[at : at + 8] = b"\xff" * len(data[at : at + 8])
        elif kind == 5:
            data[at : at + rng.choice((1, 4, 16))] = rng.choice((b"\0", b"\xff\xfe", b"\x80", b"\x7f" * 4))
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def numbers_in_bytes(rng: random.Random, content: bytes) -> bytes:
    """Replace 2, 4 or 8 bytes, preferably near the beginning, with numbers at the edges of their type."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        size = rng.choice((2, 4, 8))
        at = rng.randrange(max(1, min(len(data), rng.choice((16, 64, 256, 1 << 30)))))
        at -= at % rng.choice((1, 2, 4))
        number = rng.choice(_INTEGERS) + rng.choice((0, 0, -1, 1))
        data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(data)


def change_text(rng: random.Random, content: bytes) -> bytes:
    """Change a text as bytes, or its encoding, line ends and quotes."""
    kind = rng.randrange(12)
    if kind == 0:
        return content.decode(errors="replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-be")))
    if kind == 1:
        return content.decode(errors="replace").encode("latin-1", errors="replace") + bytes([rng.randrange(128, 256)])
    if kind == 2:
        return content.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\n", b"\x85", b"\0\n")))
    if kind == 3:
        return content.replace(
            rng.choice((b'"', b",", b":", b"\t", b"{", b"}")), rng.choice((b"", b"'", b'""', b";", b"\0"))
        )
    if kind == 4:
        return rng.choice(
            (b"", b"\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"null", b"[]", b"{}", b"0", b'""', b"\0" * 5000)
        )
    return change_bytes(rng, content)


def change_json(rng: random.Random, content: bytes) -> bytes:
    """Change values, keys and types of a JSON document one to three times; sometimes its text too."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = change_value(rng, value)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.9)
    if rng.random() < 0.25:
        spot = _random_spot(rng, text)
        text = text[: spot[0]] + rng.choice(_RAW_VALUES) + text[spot[1] :]
    encoded = text.encode(errors="surrogatepass")
    return change_text(rng, encoded) if rng.random() < 0.15 else encoded


def _random_spot(rng: random.Random, text: str) -> tuple[int, int]:
    """Return where a value of a dumped document starts and ends, judged by the colon before it."""
    starts = [at + 2 for at in range(len(text)) if text.startswith(": ", at)][:3000]
    if not starts:
        return 0, len(text)
    start = rng.choice(starts)
    ends = [end for end in (text.find(mark, start) for mark in (", ", "}", "]")) if end > 0]
    return start, min(ends, default=len(text))


def change_small_file(rng: random.Random, content: bytes) -> bytes:
    """Change a small file of any kind: as JSON, or a line of it as JSON, where it is that, else as text."""
    if rng.random() < 0.6:
        try:
            return change_json(rng, content)
        except ValueError:
            lines = content.splitlines()
            at = rng.randrange(max(1, len(lines)))
            if lines and lines[at][:1] == b"{":
                return b"\n".join([*lines[:at], change_json(rng, lines[at]), *lines[at + 1 :]])
    return change_text(rng, content)


def change_value(rng: random.Random, value: Any) -> Any:
    """Return ``value`` with one change somewhere inside: another value, type or key, or one more or less."""
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or rng.random() < 0.1:
        return _other(rng, value)
    key = rng.choice(inside[:400])
    if rng.random() < 0.5 and isinstance(value[key], (dict, list)) and value[key]:
        return _with(value, key, change_value(rng, value[key]))
    kind = rng.randrange(8)
    if kind == 0:
        return _without(value, key)
    if kind == 1 and isinstance(value, dict):
        return {**_without(value, key), rng.choice(_STRINGS): value[key]}
    if kind == 2:
        return (
            {**value, rng.choice(_STRINGS): rng.choice(HOSTILE)}
            if isinstance(value, dict)
            else [*value, rng.choice(HOSTILE)]
        )
    if kind == 3:
        return _with(value, key, value[rng.choice(inside)])
    return _with(value, key, _other(rng, value[key]))


def _other(rng: random.Random, value: Any) -> Any:
    """Return another value, sometimes a close one."""
    kind = rng.randrange(6)
    if kind == 0:
        return [value]
    if kind == 1:
        return str(value)[:1000]
    if kind == 2 and isinstance(value, (int, float)) and not isinstance(value, bool):
        return rng.choice(
            (
                value + 1,
                -value,
                value * 1000,
                value / 2 if abs(value) < 1e300 else 0,
                float(value) if abs(value) < 1e300 else 1,
            )
        )
    if kind == 3 and isinstance(value, str):
        return rng.choice((value[:-1], value + "x", value.upper(), value * 3, value.replace(".", "/")))
    return rng.choice(HOSTILE)


def _with(value: Any, key: Any, item: Any) -> Any:
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[key] = item
    return changed


def _without(value: Any, key: Any) -> Any:
    changed = dict(value) if isinstance(value, dict) else list(value)
    del changed[key]
    return changed
