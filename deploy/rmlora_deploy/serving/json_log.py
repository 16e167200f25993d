"""The server's log: one JSON object per line, whoever writes it, and nothing of what clients sent."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["JsonLines", "start_log"]


class JsonLines(logging.Formatter):
    """Formats records as JSON: time, level and message, and for an exception its type and where it was raised.

    The message of an exception is left out, since it may repeat a client's input.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if message.startswith("{"):  # an access log line, which is JSON already
            return message
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": message.strip(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["at"] = _frames(record.exc_info[2])
        return json.dumps(line)


def _frames(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def start_log() -> logging.Logger:
    """Write all logs and warnings of the process to stderr as JSON lines, and return the server's own logger."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = (
        False  # no line has them, and they take time
    )
    log = logging.getLogger("rmlora.serve")
    log.setLevel(logging.INFO)
    return log
