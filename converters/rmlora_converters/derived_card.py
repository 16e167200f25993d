"""The model card of an adapter made from others: how it was made, and that the figures of those are not its own."""

from __future__ import annotations

from typing import Any

from rmlora.adapter import Adapter
from rmlora.markdown_text import escaped, front_matter

__all__ = ["derived_card"]


def derived_card(name: str, adapter: Adapter, made: str) -> str:
    """Return the page as Markdown, with the header that the Hugging Face hub reads.

    Args:
        name: of the package's directory.
        adapter: the result.
        made: how it was made, as the end of a sentence; plain text without paths of this machine.
    """
    header: dict[str, Any] = {"library_name": "peft", "tags": ["lora", "rmlora"]}
    if adapter.task is not None:
        header["pipeline_tag"] = adapter.task
    return front_matter(header) + (
        f"\n# {escaped(name)}\n\nThis LoRA adapter in PEFT's format was made with rmlora-deploy: {escaped(made)}. It was not "
        "evaluated since; figures measured before are those of other weights.\n"
    )
