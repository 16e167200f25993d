"""Prompts, which a causal language model continues (no torch)."""

from __future__ import annotations

from rmlora.inputs import TextInputs

__all__ = ["PromptInputs"]


class PromptInputs(TextInputs):
    """Texts that a causal language model continues.

    Training reads whole conversations instead (:mod:`rmlora.training.conversations`): the columns here are those of data
    that a finished model is asked or verified on.
    """

    column_names = ("prompt", "text", "instruction", "question", "input")
    columns_compete = False
