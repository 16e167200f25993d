"""A Ctrl-C that arrives where Python swallows exceptions still ends the command."""

from __future__ import annotations

import time

import pytest

from rmlora_deploy.cli.interrupts import raising_swallowed_interrupts


class Interrupts:
    """Something whose destructor is interrupted."""

    def __del__(self) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_in_a_destructor_is_raised_again() -> None:
    with pytest.raises(KeyboardInterrupt), raising_swallowed_interrupts():
        Interrupts()
        time.sleep(10)
