"""Calls of libraries that parse files from outside, with one sentence for whatever they throw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rmlora.errors import RMLoRAError

__all__ = ["library_call", "reason_of"]

_MAX_REASON = 300
"""Characters of a library's message that a sentence repeats."""


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
    """Return the first line of a library's message in limited length, or the name of its class if it has none.

    A line that ends with a colon is continued with the next.
    """
    while type(error).__name__ == "SerdeError" and error.__cause__ is not None:  # onnx_ir's, around what is meant
        error = error.__cause__
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    message = str(error).strip()
    if isinstance(error, KeyError):
        message = f"{message} is missing or unknown"
    first, *others = (message or type(error).__name__).encode(errors="backslashreplace").decode().splitlines()
    if first.rstrip().endswith(":") and others:
        first = f"{first.rstrip()} {others[0].strip()}"
    return first[:_MAX_REASON].rstrip(".: ")
