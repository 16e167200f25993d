"""The transformers ``Trainer`` for models with encoder and decoder."""

from __future__ import annotations

from rmlora.training.language_trainer import LanguageTrainer
from rmlora.training.sampler import LengthGroupingTrainer

__all__ = ["AnswerTrainer", "GroupedAnswerTrainer"]


class AnswerTrainer(LanguageTrainer):
    """A trainer whose labels stand where their logits do: the decoder's inputs, not the labels, are moved by one."""

    shift = 0


class GroupedAnswerTrainer(AnswerTrainer, LengthGroupingTrainer):
    """The same with batches of prompts of similar length."""
