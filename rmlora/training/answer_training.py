"""Training of models with encoder and decoder: prompts and answers, the loss on the answers, generated answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import CheckpointError
from rmlora.library_calls import library_call
from rmlora.torch_models import TaskModel
from rmlora.training.answer_rows import EncodedAnswers, encode_answers
from rmlora.training.answer_tokens import end_token
from rmlora.training.language_training import LanguageTraining
from rmlora.training.task_training import TrainingData

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.training.features import Examples
    from rmlora.training.language_rows import Shift

__all__ = ["AnswerTraining"]


class AnswerTraining(LanguageTraining):
    """Training for :class:`rmlora.answered_text.AnsweredText`; what is not written here is as for language models."""

    _encoded: Mapping[str, EncodedAnswers]

    def check_data(self, data: TrainingData, processor: Any) -> TrainingData:
        """Return the rows as tokens."""
        self._end = end_token(processor, self.settings.base)
        limit, skip = self.settings.token_limit, self.settings.skip_long
        self._encoded = {
            name: encode_answers(rows, processor, end=self._end, max_length=limit, skip_long=skip)
            for name, rows in data.splits.items()
        }
        notes = dict.fromkeys(note for split in self._encoded.values() for note in split.notes)
        return TrainingData(self._encoded, notes=tuple(notes))

    def load_options(self) -> dict[str, Any]:
        """Return nothing: the base is loaded as it is."""
        return {}

    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Refuse a base without output layer, and one whose decoder cannot be told what to read."""
        if loaded.new_modules:
            raise CheckpointError(
                f"The base at {base} has no weights for '{loaded.new_modules[0]}', so it writes no text: give one whose config.json "
                "names an architecture that ends with ForConditionalGeneration."
            )
        model: Any = loaded.model
        if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
            raise CheckpointError(
                f"The base at {base} is a {type(model).__name__}, which does not say what its decoder reads while it learns an answer "
                "(transformers' prepare_decoder_input_ids_from_labels): give a T5, BART, Pegasus or Marian model."
            )
        self._shift: Shift = lambda labels: model.prepare_decoder_input_ids_from_labels(labels=labels)
        import torch

        def refuse(reason: str) -> CheckpointError:
            return CheckpointError(
                f"The base at {base} does not say with which token an answer begins ({reason}): set decoder_start_token_id and "
                "pad_token_id in its config.json."
            )

        with library_call(refuse):
            self._shift(torch.tensor([[self._end]]))
        self._check_room(model)

    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return prompts with the tokens of their answers."""
        from rmlora.training.language_rows import AnswerRows

        self._padding = int(processor.pad_token_id or 0)
        return {name: AnswerRows(split.rows, self._padding, self._shift) for name, split in self._encoded.items()}

    def trainer(self, arguments: Mapping[str, Any], examples: Mapping[str, Examples], processor: Any) -> Trainer:
        """Return a trainer whose loss is a mean over all answer tokens of a step."""
        from rmlora.training.answer_trainer import AnswerTrainer, GroupedAnswerTrainer

        kind = GroupedAnswerTrainer if self.settings.group_by_length else AnswerTrainer
        return self._made_by(kind, arguments, processor)

    def metadata(self, model: PeftModel) -> dict[str, Any]:
        """Return how the base was asked."""
        return {"prompt_format": "raw", "end_tokens": self._end_tokens(), "max_length": self.settings.token_limit}

    def _longest(self, prompt: Sequence[int], count: int) -> dict[str, Any]:
        import torch

        return {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[self._end] * count])}

    def _asked(self, split: str) -> tuple[list[list[int]], list[str]]:
        return self._encoded[split].prompts, self._encoded[split].references

    def _end_tokens(self) -> list[int]:
        return [self._end]
