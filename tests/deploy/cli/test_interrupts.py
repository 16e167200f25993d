"""A Ctrl-C that arrives where Python swallows exceptions still ends the command."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from rmlora_deploy.cli.interrupts import raising_swallowed_interrupts


class Interrupts:
    """Something whose destructor is interrupted."""

    def __del__(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def as_in_a_terminal() -> Iterator[None]:
    """Take Ctrl-C as Python does by itself: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("as_in_a_terminal")
def test_an_interrupt_in_a_destructor_is_raised_again() -> None:
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), raising_swallowed_interrupts():
        Interrupts()
        time.sleep(10)
    assert time.monotonic() - started < 9  # it ends the wait
