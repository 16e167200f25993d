"""Prompts, which a causal language model continues (no torch)."""

from __future__ import annotations

from rmlora.single_text_inputs import SingleTextInputs

__all__ = ["PromptInputs"]


class PromptInputs(SingleTextInputs):
    """Texts that a causal language model continues.

    Training reads whole conversations instead (:mod:`rmlora.training.conversations`): the columns here are those of data
    that a finished model is asked or verified on.
    """

    column_names = ("prompt", "text", "instruction", "question", "input")
    columns_compete = False
