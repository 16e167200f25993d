"""Ctrl-C: one line that says how to continue, wherever the command is, its imports included."""

from __future__ import annotations

import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rmlora.errors import Interrupted

__all__ = ["came_from_interrupt", "interrupt_message", "raising_swallowed_interrupts"]

_SOON = 0.02
"""Seconds until a swallowed Ctrl-C is raised again."""
_HOW_TO_CONTINUE = {
    "train": "Interrupted before the first step: give the same command again.",
    **dict.fromkeys(
        ("merge", "mix", "compress", "export", "adapter"),
        "Interrupted: give the same command again; a result is written only when it is complete.",
    ),
}
"""Command → sentence, for those that can be continued or repeated."""


@contextmanager
def raising_swallowed_interrupts() -> Iterator[None]:
    """While the block runs, raise a Ctrl-C again that came in a destructor, where Python prints it and goes on."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # From another thread, when this hook has returned: raised inside it, it would be swallowed once more.
            again = threading.Timer(_SOON, _interrupt)
            again.daemon = True
            again.start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt() -> None:
    """Interrupt the main thread, out of a wait too where the system has signals for threads."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        interrupt_main()


def came_from_interrupt(error: BaseException) -> bool:
    """Return True if Ctrl-C is behind ``error``: in the middle of an import it can come out as another error."""
    return any(isinstance(item, KeyboardInterrupt) for item in _chain(error))


def interrupt_message(error: BaseException, arguments: Sequence[str] | None) -> str:
    """Return the sentence for an interrupted command.

    Args:
        error: that ended it; the message of an :class:`Interrupted` behind it wins.
        arguments: of the command line; None takes the program's own.
    """
    for item in _chain(error):
        if isinstance(item, Interrupted):
            return str(item)
    words = sys.argv[1:] if arguments is None else arguments
    return next((_HOW_TO_CONTINUE[word] for word in words[:1] if word in _HOW_TO_CONTINUE), "Interrupted.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and the errors behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
