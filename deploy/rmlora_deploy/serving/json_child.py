"""Parses large JSON bodies in a process of its own; :mod:`rmlora_deploy.serving.json_bodies` starts it as a script.

A parser holds the interpreter's lock until it is done, for a second or more on a hostile body, so no thread of the server
can do this. The process needs the standard library only. It reads frames (length, then JSON) from its standard input and
writes frames (length, then a pickle) to its standard output: ``("value", parsed)``, ``("error", message, position)`` if it
is not valid JSON, or ``("memory",)`` if there is too little memory for it. Long lists come in a form that costs the server
little to read: numbers as an array, and of anything but texts only the beginning, as long as its argument says, since the
server refuses longer ones.
"""

from __future__ import annotations

import json
import pickle
import struct
import sys
from array import array
from typing import Any, BinaryIO

__all__ = ["main"]

_LONG = 1000
"""Numbers in a list that is long."""
_CODES: dict[str, set[type]] = {"b": {bool}, "q": {int}, "d": {int, float}}
"""Type code of an array → types of the values that it holds."""
_MEMORY = 1 << 30
"""Bytes of address space that the process may use."""


def main() -> None:
    """Answer frames until the input ends."""
    _limit_memory()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    longest = int(sys.argv[1])
    while (body := _read(source)) is not None:
        content = pickle.dumps(_parsed(body, longest), protocol=5)
        del body
        target.write(struct.pack("<Q", len(content)))
        target.write(content)
        target.flush()


def _read(source: BinaryIO) -> bytes | None:
    size = source.read(8)
    return source.read(struct.unpack("<Q", size)[0]) if len(size) == 8 else None


def _parsed(body: bytes, longest: int) -> tuple[Any, ...]:
    try:
        return "value", _reduced(json.loads(body), longest)
    except json.JSONDecodeError as error:
        return "error", error.msg, error.pos
    except MemoryError:
        return ("memory",)
    except (ValueError, RecursionError) as error:  # not UTF-8, for example
        return "error", type(error).__name__, 0


def _reduced(value: Any, longest: int) -> Any:
    if isinstance(value, dict):
        return {key: _reduced(item, longest) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    flat = _flat(value)
    if flat is not None and len(flat[1]) > _LONG and (numbers := _packed(flat[1])) is not None:
        return numbers
    if len(value) > longest and set(map(type, value)) != {str}:
        value = value[:longest]
    return [_reduced(item, longest) for item in value]


def _flat(value: list[Any]) -> tuple[tuple[int, ...], list[Any]] | None:
    """Return the shape and the items of nested lists; None if they have no shape."""
    kinds = set(map(type, value))
    if list not in kinds:
        return None if dict in kinds else ((len(value),), value)
    if kinds != {list}:
        return None
    parts = list(map(_flat, value))
    first = parts[0]
    if first is None or any(part is None or part[0] != first[0] for part in parts):
        return None
    return (len(parts), *first[0]), [item for part in parts if part is not None for item in part[1]]


def _packed(items: list[Any]) -> array[Any] | None:
    """Return numbers or truth values as an array; None if they are something else, or too large for it."""
    kinds = set(map(type, items))
    code = next((code for code, allowed in _CODES.items() if kinds <= allowed), None)
    try:
        return None if code is None else array(code, items)
    except OverflowError:
        return None


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    allowed = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    limit = min([_MEMORY, *allowed])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
