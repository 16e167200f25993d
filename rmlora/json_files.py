"""Reads small files that come from outside: bounded in size and depth, never waiting for a pipe, one sentence per fault.

No reader that gets its values here meets a directory, a device, bytes that are no text, or a value of another type. Keys
that are not known stay: they belong to other versions of other tools. Files that a library reads pass through
:func:`rmlora.library_calls.library_call`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rmlora.errors import InputError
from rmlora.library_calls import reason_of
from rmlora.readable import permissions_named

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

__all__ = ["check_file", "check_size", "check_values", "parse_json", "read_json", "read_text"]

_Model = TypeVar("_Model", bound="BaseModel")

_MAX_BYTES = 256 << 20
"""Largest text that is read into memory; the largest known tokenizer.json has 35 MB."""
_MAX_DEPTH = 100
"""Deepest nesting of a JSON document. Deeper ones end Python's recursion when they are copied or written."""


_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")
"""Where the shell puts what it gives open, as ``--file <(command)``: pipes that somebody writes to."""


def check_file(path: Path, *, what: str) -> os.stat_result:
    """Return the status of a regular file, links followed; nothing is opened, so a pipe does not block.

    What the shell opened for this process, and ``/dev/null``, count as files.

    Args:
        path: of the file.
        what: description of the file for errors, such as "Model configuration".

    Raises:
        InputError: it is missing, may not be read, or is something else than a file.
    """
    try:
        with permissions_named(path):
            status = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{what} not found: {path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: the path has a null character
        raise InputError(f"{what} {path} cannot be read: {_reason_of_system(error)}.") from None
    given = str(path).startswith(_DESCRIPTORS) or (stat.S_ISCHR(status.st_mode) and _is_null(status))
    if not stat.S_ISREG(status.st_mode) and not given:
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise InputError(f"{what} {path} is {kind}, but a file is expected: give a file.")
    return status


def _is_null(status: os.stat_result) -> bool:
    return status.st_rdev == os.stat(os.devnull).st_rdev


def check_size(path: Path, *, what: str) -> None:
    """Raise :class:`InputError`, as :func:`check_file`, if a file is larger than any text that is read into memory."""
    _check_length(check_file(path, what=what).st_size, path, what)


def _check_length(size: int, path: Path, what: str) -> None:
    if size > _MAX_BYTES:
        raise InputError(
            f"{what} {path} has {size:,} bytes; at most {_MAX_BYTES:,} are read: it is another kind of file."
        )


def read_text(path: Path, *, what: str) -> str:
    """Return the content of a UTF-8 file.

    Raises:
        InputError: as :func:`check_file`, or it is too large or not UTF-8.
    """
    status = check_file(path, what=what)
    _check_length(status.st_size, path, what)
    try:
        with permissions_named(path), open(path, "rb") as file:
            content = file.read() if stat.S_ISREG(status.st_mode) else file.read(_MAX_BYTES + 1)
        _check_length(len(content), path, what)
        return content.decode()
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {_reason_of_system(error)}.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} {path} cannot be read as UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from None


def read_json(path: Path, *, what: str, finite: bool = True) -> Any:
    """Return the content of a JSON file.

    Args:
        path: of the file.
        what: description of the file for errors.
        finite: refuse NaN and Infinity; the configurations of transformers may hold them.

    Raises:
        InputError: as :func:`read_text`, or it is not JSON.
    """
    return parse_json(read_text(path, what=what), where=f"{what} {path}", finite=finite)


def parse_json(text: str, *, where: str, finite: bool = True) -> Any:
    """Return the value of a JSON document; of a key that is there twice, the last counts, as in Python's own reader.

    Raises:
        InputError: it is not JSON, is nested too deeply, or holds characters that no file can.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite) if finite else json.loads(text)
        _check_depth(value, text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{where} holds half of a surrogate pair, which is no character: restore or re-create it."
        ) from None
    except RecursionError:
        raise InputError(f"{where} is nested more than {_MAX_DEPTH} levels deep: restore or re-create it.") from None
    except ValueError as error:
        reason = reason_of(error)
        if "set_int_max_str_digits" in reason:
            reason = "a number has more than 4300 digits"
        raise InputError(f"{where} cannot be read as JSON ({reason}): restore or re-create it.") from None
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {_short(text)} is too large")
    return number


def check_values(
    model: type[_Model], value: Any, *, where: str, advice: str, error: type[InputError] = InputError
) -> _Model:
    """Return ``value`` as a typed model.

    Args:
        model: the keys and their types.
        value: a parsed JSON document.
        where: file that holds it, for the error.
        advice: what to do about it, for the error.
        error: class of the error.

    Raises:
        InputError: it is not an object, or a key is missing or has another type; the message names the key.
    """
    from pydantic import ValidationError  # here, because most commands' --help needs this module and not pydantic

    if not isinstance(value, dict):
        raise error(f"{where} does not hold a JSON object, but {_kind(value)}: {advice}.")
    try:
        return model.model_validate(value)
    except (ValidationError, RecursionError) as caught:
        raise error(f"{where} {_first_fault(caught, value)}: {advice}.") from None


def _first_fault(error: ValidationError | RecursionError, value: Any) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    found = [(_keys(value, item["loc"], item["type"] == "missing"), item) for item in error.errors(include_url=False)]
    keys, first = max(
        found, key=lambda pair: len(pair[0])
    )  # of the types that a value may have, the one that fits best
    key = _short(".".join(keys))
    if not key:  # about several keys
        return f"is damaged ({first['msg'].removeprefix('Value error, ')})"
    if first["type"] == "missing":
        return f"lacks '{key}'"
    if first["type"] == "extra_forbidden":
        return f"has a wrong '{key}' (a key that it cannot have)"
    if first["type"] == "value_error":  # says itself what it found
        return f"has a wrong '{key}' ({_lower(first['msg'])})"
    given = _short(json.dumps(first["input"], default=str)) if not isinstance(first["input"], Mapping) else "an object"
    return f"has a wrong '{key}' ({_lower(first['msg'])}, not {given})"


def _keys(value: Any, location: Sequence[str | int], missing: bool) -> list[str]:
    """Return the keys in ``location``, which also holds the names of types that were tried."""
    keys: list[str] = []
    for part in location[: -1 if missing else None]:
        inside = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
        if part in inside:
            value = inside[part]
            keys.append(str(part))
    return [*keys, str(location[-1])] if missing else keys


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    message = re.sub("a valid dictionary( or instance of \\w+)?", "an object", message)
    return message[:1].lower() + message[1:]


def _kind(value: Any) -> str:
    kinds = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), "something else")


def _short(text: str) -> str:
    printable = text.encode(errors="backslashreplace").decode()
    return printable if len(printable) <= 60 else printable[:57] + "…"


def _reason_of_system(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return "its name holds a null character"
    if error.errno == errno.ELOOP:
        return "it is a link that leads to itself"
    return (error.strerror or type(error).__name__).lower()


def _check_depth(value: Any, text: str) -> None:
    """Raise RecursionError if ``value`` is nested too deeply; only counted where the text has enough brackets for it."""
    if text.count("[") + text.count("{") <= _MAX_DEPTH or not isinstance(value, (dict, list)):
        return
    level = [value]
    for _ in range(_MAX_DEPTH):
        inside = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        level = [inner for inner in inside if isinstance(inner, (dict, list))]
        if not level:
            return
    raise RecursionError
