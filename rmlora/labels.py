"""Reading label names that the user gives: ``a,b,c`` or a file of them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError, InputError

__all__ = ["check_label_count", "parse_labels"]


def parse_labels(value: str | Path) -> tuple[str, ...]:
    """Return label names, in the order of a head's outputs.

    Args:
        value: names with commas between them (one that contains a comma in double quotes: ``"a, b",c``), or an existing
            file: a text file with one name per line, a ``.json`` file with a list of names, an ``id2label`` object, or a
            ``config.json`` that has one.

    Raises:
        ConfigError: a name is empty or occurs twice.
        InputError: the file cannot be read or holds no names.
    """
    path = Path(value)
    if isinstance(value, Path) or _is_file(path):
        names, where = _read_names(path), str(path)
    else:
        if path.suffix in (".txt", ".json", ".jsonl", ".csv") and "," not in value:
            raise InputError(
                f"Labels not found: {value} does not exist; give names as a,b,c or a file that holds them."
            )
        names, where = [name.strip() for name in next(csv.reader([value], skipinitialspace=True), [])], "--labels"
    if not names:
        raise InputError(f"{where} holds no label names: write one per line, or give them as a,b,c.")
    for number, name in enumerate(names):
        if not name:
            raise ConfigError(f"Label {number + 1} of {where} is empty: name every label.")
        if name in names[:number]:
            raise ConfigError(f"{where} names the label '{name}' twice: every label needs a name of its own.")
    return tuple(names)


def check_label_count(labels: Sequence[str], outputs: int, *, source: str) -> None:
    """Check that there is a name for every output of a head.

    Args:
        labels: names from :func:`parse_labels`.
        outputs: of the head.
        source: the adapter or base that has the head, for the error message.

    Raises:
        ConfigError: there are more or fewer names than outputs.
    """
    if len(labels) != outputs:
        names = "name" if len(labels) == 1 else "names"
        raise ConfigError(
            f"--labels gives {len(labels)} {names}, but the head of {source} has {outputs} "
            f"{'output' if outputs == 1 else 'outputs'}: give one name per output, in their order."
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a long list of names is no file name
        return False


def _read_names(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"The labels in {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save the labels as UTF-8, one per line.") from None
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return _names_in(json.loads(text), path)
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not valid JSON: write a list of label names, or an id2label object.") from None


def _names_in(content: Any, path: Path) -> list[str]:
    if isinstance(content, Mapping):
        content = content.get("id2label", content)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [name.strip() for name in content]
    if isinstance(content, Mapping):
        numbers = sorted((int(key), key) for key in content if re.fullmatch(r"[0-9]{1,9}", str(key)))
        complete = [number for number, _ in numbers] == list(range(len(content)))
        if complete and all(isinstance(name, str) for name in content.values()):
            return [content[key].strip() for _, key in numbers]
    raise InputError(f"{path} holds neither a list of label names nor an id2label object numbered from 0.")
