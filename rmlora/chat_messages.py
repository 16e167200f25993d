"""What the messages of a chat must hold so that a chat template can write them: it renders what is missing as nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["unwritten_calls", "without_content"]


def without_content(message: Mapping[str, Any]) -> bool:
    """Return True if a message says nothing: it has no content, and is no answer that only calls tools."""
    content = message.get("content")
    missing = content is None or content != content  # NaN, with which tools fill empty cells
    return missing and not (message.get("role") == "assistant" and message.get("tool_calls"))


def unwritten_calls(messages: Sequence[Mapping[str, Any]], template: str) -> int | None:
    """Return the place, from 1, of the first message with ``tool_calls``, if ``template`` does not write them; else None."""
    if "tool_calls" in template:
        return None
    return next((place for place, message in enumerate(messages, start=1) if message.get("tool_calls")), None)
