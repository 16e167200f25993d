"""A server's log: one JSON object a line, whoever writes it, and nothing of what clients sent."""

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
    """Writes what is not JSON yet as time, level and message; of an exception its type and place.

    The words of an unexpected exception are left out, since they may repeat a client's input.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if message.startswith("{"):  # a line about a request
            return message
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": message.strip(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["at"] = _places(record.exc_info[2])
        return json.dumps(line)


def _places(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def start_log() -> logging.Logger:
    """Send all logs of the process to stderr as JSON lines, warnings too, and return the server's own."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    log = logging.getLogger("rmlora.serve")
    log.setLevel(logging.INFO)
    return log
