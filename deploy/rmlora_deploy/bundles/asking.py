"""How a language model is asked, and where its answers end: as its adapter was trained, else as the base has it."""

from __future__ import annotations

from rmlora_deploy.bundles.manifest import AdapterSource, Manifest, PromptFormat
from rmlora_deploy.runtime.decoder.decoder_layout import DecoderLayout

__all__ = ["end_tokens", "prompt_format"]


def prompt_format(manifest: Manifest, adapter: AdapterSource | None) -> PromptFormat:
    """Return what becomes of a text: the user's message of a chat, or a text to continue.

    Args:
        manifest: of the bundle.
        adapter: of a row, or merged; None for the base. One that records nothing is asked as the base.
    """
    base: PromptFormat = "chat" if manifest.decoder is not None and manifest.decoder.chat else "raw"
    return (adapter.prompt_format if adapter is not None else None) or base


def end_tokens(layout: DecoderLayout, adapter: AdapterSource | None) -> frozenset[int]:
    """Return the tokens that end an answer: the base's, and those that ended the answers in training."""
    return layout.end_tokens | frozenset(adapter.end_tokens if adapter is not None else ())
