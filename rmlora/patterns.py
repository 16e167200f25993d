"""Regular expressions that come with an adapter, matched by PEFT's rules within a bounded time.

``rank_pattern``, ``alpha_pattern``, ``target_modules`` and ``exclude_modules`` of an ``adapter_config.json`` are data from
outside, and ``re`` can take forever: ``(a+)+b`` doubles its time with every further ``a``. So a pattern that is not a plain
name runs in a process of its own, which ends after :data:`SECONDS`. The engine stays ``re``, because only that gives PEFT's
answers for everything that PEFT accepts (look-arounds, back references).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rmlora.errors import AdapterError

__all__ = ["check_selection", "first_matches"]

SECONDS = 5.0
"""Time for all patterns of one adapter together; thousands of usual ones over thousands of modules take well under 1 s."""

_MOST_PATTERNS = 20_000
_LONGEST_PATTERN = 2_000
_PLAIN = re.compile(r"\^?(?:[\w-]|\\?\.|\\-)+\$?", re.ASCII)
"""A name, perhaps escaped or anchored: nothing that repeats, so it is matched in this process. An unescaped dot stands for
any character and costs nothing either."""

_MATCHER = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, ValueError, OSError):
    pass
patterns, names = json.load(sys.stdin)
found = []
for index, pattern in enumerate(patterns):
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        print(json.dumps({"invalid": index, "reason": str(error)}))
        sys.exit()
    sys.stderr.write(f"{index}\\n"); sys.stderr.flush()
    found.append([place for place, name in enumerate(names) if compiled.match(name)])
print(json.dumps({"found": found}))
"""


def first_matches(patterns: Sequence[str], names: Sequence[str], *, key: str, source: str) -> dict[str, str]:
    """Return for each name the first pattern that matches it, by PEFT's rule for ``rank_pattern`` and ``alpha_pattern``.

    A pattern must match the whole name, or its ending after a dot.

    Args:
        patterns: in the order of the configuration.
        names: module paths.
        key: of the configuration, for error messages.
        source: the file or directory that holds it, for error messages.

    Returns:
        name → pattern; names that none matches are left out.

    Raises:
        AdapterError: there are too many patterns, or one is too long, is no regular expression, or takes too long.
    """
    _check_size(patterns, key, source)
    first: dict[str, int] = {}
    involved = []
    for index, pattern in enumerate(patterns):
        if _PLAIN.fullmatch(pattern):
            for name in _named(pattern, names):
                first.setdefault(name, index)
        else:
            involved.append(index)
    given = [patterns[index] for index in involved]
    found_elsewhere = _match_elsewhere([rf"(.*\.)?({pattern})$" for pattern in given], given, names, key, source)
    for index, found in zip(involved, found_elsewhere, strict=True):
        for name in found:
            first[name] = min(first.get(name, index), index)
    return {name: patterns[index] for name, index in first.items()}


def check_selection(config: Mapping[str, Any], names: Sequence[str], *, source: str) -> None:
    """Refuse a configuration whose patterns PEFT could not match against ``names`` in bounded time.

    Args:
        config: of ``adapter_config.json``.
        names: every module path of the model that PEFT is about to change.
        source: the file or directory that holds it, for error messages.

    Raises:
        AdapterError: as :func:`first_matches`.
    """
    for key in ("rank_pattern", "alpha_pattern"):
        first_matches(list(config.get(key) or {}), names, key=key, source=source)
    for key in ("target_modules", "exclude_modules"):
        if isinstance(pattern := config.get(key), str) and not _PLAIN.fullmatch(pattern):  # a list holds plain endings
            _check_size([pattern], key, source)
            _match_elsewhere([f"(?:{pattern})$"], [pattern], names, key, source)
    for key in ("layers_pattern", "modules_to_save"):
        value = config.get(key) or []
        patterns = [value] if isinstance(value, str) else list(value)
        _check_size(patterns, key, source)
        involved = [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]
        before, after = ("(?:^|.*?\\.)", r"\.(?P<idx>\d+)\.") if key == "layers_pattern" else (r"(^|.*\.)", r"($|\..*)")
        _match_elsewhere([before + pattern + after for pattern in involved], involved, names, key, source)


def _named(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a plain pattern matches."""
    if "." not in pattern.replace("\\.", ""):  # no wildcard: compare texts, which also holds for thousands of patterns
        ending = pattern.lstrip("^").rstrip("$").replace("\\", "")
        if pattern.startswith("^"):
            return [name for name in names if name == ending]
        return [name for name in names if name == ending or name.endswith("." + ending)]
    compiled = re.compile(rf"(.*\.)?({pattern})$")
    return [name for name in names if compiled.match(name)]


def _match_elsewhere(
    patterns: Sequence[str], given: Sequence[str], names: Sequence[str], key: str, source: str
) -> list[list[str]]:
    """Return the names that each pattern matches from their beginning, found in a process with limited time.

    Args:
        patterns: as PEFT completes them.
        given: the same as the configuration has them, for error messages.
        names: to match.
        key: of the configuration, for error messages.
        source: the file or directory that holds it, for error messages.
    """
    if not patterns:
        return []
    child = [
        sys.executable,
        "-I",
        "-S",
        "-W",
        "ignore",
        "-c",
        _MATCHER,
    ]  # isolated: no file of the working directory is imported
    try:
        done = subprocess.run(
            child, input=json.dumps([patterns, names]), capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as expired:
        begun = (expired.stderr or b"").split()
        at = int(begun[-1]) if begun else 0
        raise AdapterError(
            f"The pattern {_shown(given[at])} in {key} of {source} takes too long to match ({SECONDS:.0f} s): "
            "write it without nested repetitions, such as (a+)+."
        ) from None
    if done.returncode != 0:
        raise AdapterError(f"The patterns in {key} of {source} cannot be matched: Python's re module gave up on them.")
    answer = json.loads(done.stdout)
    if "invalid" in answer:
        raise AdapterError(
            f"The pattern {_shown(given[answer['invalid']])} in {key} of {source} is not a regular expression: "
            f"{answer['reason']}."
        )
    return [[names[place] for place in places] for places in answer["found"]]


def _check_size(patterns: Sequence[str], key: str, source: str) -> None:
    if len(patterns) > _MOST_PATTERNS:
        raise AdapterError(f"{key} of {source} holds {len(patterns)} patterns; at most {_MOST_PATTERNS} are read.")
    for pattern in patterns:
        if len(pattern) > _LONGEST_PATTERN:
            raise AdapterError(
                f"A pattern in {key} of {source} has {len(pattern)} characters ({_shown(pattern)}); at most "
                f"{_LONGEST_PATTERN} are matched."
            )


def _shown(pattern: str) -> str:
    return f"'{pattern[:60]}…'" if len(pattern) > 60 else f"'{pattern}'"
