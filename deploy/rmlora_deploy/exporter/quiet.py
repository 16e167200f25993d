"""Silences libraries whose messages are about their own steps: their errors are raised, and reported in one sentence."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

__all__ = ["quiet_libraries"]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide warnings, log records below errors, and what is printed: torch dumps its whole graph before it raises.

    What libraries set up of logging is undone: onnxruntime's quantizer of blocks has all records printed from its import on.
    """
    before = logging.root.manager.disable
    handlers, level = list(logging.root.handlers), logging.root.level
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        logging.disable(before)
