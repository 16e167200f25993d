"""Which of the processes of a distributed run prints and writes, before there is a process group to ask."""

from __future__ import annotations

import os

__all__ = ["is_first_process"]


def is_first_process() -> bool:
    """Return True in the first process that ``torchrun`` started, and in one that was started alone."""
    return os.environ.get("RANK", "0") == "0"
