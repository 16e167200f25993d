"""Reads files that come from outside: bounded in size and depth, without waiting for pipes, and with one sentence per fault.

Every file of another tool passes here or through :func:`library_call`, so no reader meets a directory, a device, bytes that
are no text, or a value of another type. Keys that are not known stay: they belong to other versions of other tools.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rmlora.errors import InputError, RMLoRAError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

__all__ = ["check_file", "check_values", "library_call", "parse_json", "read_json", "read_text", "reason_of"]

_Model = TypeVar("_Model", bound="BaseModel")

_MAX_BYTES = 256 << 20
"""Largest text that is read into memory; the largest known tokenizer.json has 35 MB."""
_MAX_DEPTH = 100
"""Deepest nesting of a JSON document. Deeper ones end Python's recursion when they are copied or written."""
_MAX_REASON = 300
"""Characters of a library's message that a sentence repeats."""


def check_file(path: Path, *, what: str) -> os.stat_result:
    """Return the status of a regular file, links followed; nothing is opened, so a pipe does not block.

    Args:
        path: of the file.
        what: description of the file for errors, such as "Model configuration".

    Raises:
        InputError: it is missing, may not be read, or is something else than a file.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{what} not found: {path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: the path has a null character
        raise InputError(f"{what} {path} cannot be read: {_reason_of_system(error)}.") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise InputError(f"{what} {path} is {kind}, but a file is expected: give a file.")
    return status


def read_text(path: Path, *, what: str) -> str:
    """Return the content of a UTF-8 file.

    Raises:
        InputError: as :func:`check_file`, or it is too large or not UTF-8.
    """
    size = check_file(path, what=what).st_size
    if size > _MAX_BYTES:
        raise InputError(
            f"{what} {path} has {size:,} bytes; at most {_MAX_BYTES:,} are read: it is another kind of file."
        )
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {_reason_of_system(error)}.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} {path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from None


def read_json(path: Path, *, what: str) -> Any:
    """Return the content of a JSON file; ``what`` describes the file in errors.

    Raises:
        InputError: as :func:`read_text`, or it is not JSON.
    """
    return parse_json(read_text(path, what=what), where=f"{what} {path}")


def parse_json(text: str, *, where: str) -> Any:
    """Return the value of a JSON document; of a key that is there twice, the last counts, as in Python's own reader.

    NaN and Infinity are values, since configurations of transformers hold them.

    Raises:
        InputError: it is not JSON, is nested too deeply, or holds characters that no file can.
    """
    try:
        value = json.loads(text)
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
        raise InputError(f"{where} cannot be read as JSON ({reason_of(error)}): restore or re-create it.") from None
    return value


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
        raise error(f"{where} holds {_kind(value)} where a JSON object is expected: {advice}.")
    try:
        return model.model_validate(value)
    except (ValidationError, RecursionError) as caught:
        raise error(f"{where} {_first_fault(caught)}: {advice}.") from None


def _first_fault(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    first = error.errors(include_url=False)[0]
    key = _short(".".join(str(part) for part in first["loc"]))
    if first["type"] == "missing":
        return f"lacks '{key}'"
    given = _short(json.dumps(first["input"], default=str)) if not isinstance(first["input"], Mapping) else "an object"
    return f"has a wrong '{key}' ({first['msg'][0].lower()}{first['msg'][1:]}, not {given})"


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


@contextmanager
def library_call(refuse: Callable[[str], RMLoRAError]) -> Iterator[None]:
    """Turn whatever a library throws at a file from outside into an error of this project.

    Put nothing but the call into the block: an exception in it is taken for a fault of the file.

    Args:
        refuse: makes the error from the library's reason, one line.

    Raises:
        RMLoRAError: what ``refuse`` returned; errors of this project pass as they are.
    """
    try:
        yield
    except RMLoRAError:
        raise
    except Exception as error:  # noqa: BLE001 - parsers of damaged files raise anything
        raise refuse(reason_of(error)) from None
    except BaseException as error:
        if (
            type(error).__name__ != "PanicException"
        ):  # of libraries in Rust: it derives from no class that can be imported
            raise
        raise refuse(reason_of(error)) from None


def reason_of(error: BaseException) -> str:
    """Return the first line of a library's message, or the name of its class if it has none; both in limited length."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    message = str(error).strip()
    if isinstance(error, KeyError):
        message = f"{message} is missing or unknown"
    lines = (message or type(error).__name__).encode(errors="backslashreplace").decode().splitlines()
    return lines[0][:_MAX_REASON].rstrip(".: ")


def _reason_of_system(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return "its name holds a null character"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied"
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
