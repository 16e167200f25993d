"""Text that a model with encoder and decoder writes for a prompt, as a kind of outputs."""

from __future__ import annotations

from rmlora.generated_text import GeneratedText

__all__ = ["AnsweredText"]


class AnsweredText(GeneratedText):
    """For every token of an answer, one score per token of the vocabulary; the prompt is the encoder's."""

    kind = "answer"
    train_settings = frozenset({"prompt_column", "completion_column", "skip_long", "metric", "max_new_tokens"})
