"""Training of causal language models: conversations, loss on the answers, perplexity, generated answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import CheckpointError, ConfigError, InputError, TrainingError, require
from rmlora.library_calls import library_call
from rmlora.torch_models import TaskModel
from rmlora.training.answer_metrics import check_metric, score_answers
from rmlora.training.answer_tokens import EncodedSplit, PromptFormat, encode_split
from rmlora.training.conversations import Conversations, TextColumns
from rmlora.training.language_data import load_conversations
from rmlora.training.task_training import Evaluation, TaskTraining, TrainingData

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.training.features import Examples
    from rmlora.training.language_trainer import LanguageTrainer
    from rmlora.training.packed_rows import PackedRows

__all__ = ["LanguageTraining"]

_SHOWN = 5
"""Generated answers of a split that the package records."""


class LanguageTraining(TaskTraining):
    """Training for :class:`rmlora.generated_text.GeneratedText`."""

    _format: PromptFormat
    _packed: PackedRows | None = None
    _splits: Mapping[str, EncodedSplit]

    def load(self) -> TrainingData:
        """Read conversations."""
        settings = self.settings
        check_metric(settings.metric)
        splits = load_conversations(
            settings.sources,
            TextColumns(
                settings.messages_column, settings.prompt_column, settings.completion_column, settings.text_column
            ),
            settings.reading,
            validation_fraction=settings.validation_fraction,
            seed=settings.data_seed,
        )
        for data in splits.values():
            self._check_metric(data)
        self._measured = tuple(name for name in splits if name != "train")
        return TrainingData(splits)

    def check_data(self, data: TrainingData, processor: Any) -> TrainingData:
        """Return the rows as tokens."""
        self._format = PromptFormat(processor, self.settings.base, raw=self.settings.raw)
        self._splits = {
            name: encode_split(
                rows, self._format, max_length=self.settings.token_limit, skip_long=self.settings.skip_long
            )
            for name, rows in data.splits.items()
        }
        self._continues = data.splits["train"].form == "text"  # which no chat template has touched
        self._check_prompts(data)
        notes = dict.fromkeys(note for split in self._splits.values() for note in split.notes)
        return TrainingData(self._splits, notes=tuple(notes))

    def load_options(self) -> dict[str, Any]:
        """Return how the base's weights are rounded to 4 bits, if they are."""
        if not self.settings.load_in_4bit:
            return {}
        require("bitsandbytes", "qlora")
        import torch
        from transformers import BitsAndBytesConfig

        computed_in = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.settings.precision]
        rounding = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=computed_in,
        )
        device = int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"
        return {"quantization_config": rounding, "device_map": {"": device}}

    def check_model(self, loaded: TaskModel, base: Path) -> None:
        """Refuse a base without output layer, and one that sees what it is to predict."""
        if loaded.new_modules:
            raise CheckpointError(
                f"The base at {base} has no weights for '{loaded.new_modules[0]}', so it is no language model: give one whose "
                "config.json names an architecture that ends with ForCausalLM or LMHeadModel."
            )
        with library_call(self._refuse_rounding) if self.settings.load_in_4bit else nullcontext():
            sees_the_future = _sees_the_future(loaded.model)
        if sees_the_future:
            raise CheckpointError(
                f"The base at {base} is no causal language model: what it says at a token depends on the tokens after it. Give a "
                "decoder, such as a Llama, Qwen or GPT-2."
            )
        if self.settings.packing:
            from rmlora.training.packed_rows import check_packing

            check_packing(loaded.model, self.settings.base)
        self._check_room(loaded.model)

    def _check_room(self, model: Any) -> None:
        """Refuse prompts that the base cannot answer in full, as those with positions of a fixed number cannot."""
        import torch

        if self.settings.metric is None:
            return
        count = self.settings.max_new_tokens
        prompt = max((prompt for split in self._measured for prompt in self._asked(split)[0]), key=len)

        def refuse(reason: str) -> ConfigError:
            return ConfigError(
                f"The base {self.settings.base} cannot answer the longest prompt, {len(prompt)} tokens, with --max-new-tokens {count} "
                f"({reason}): lower it, or --max-length."
            )

        with library_call(refuse), torch.no_grad():
            model(**self._longest(prompt, count))

    def _longest(self, prompt: Sequence[int], count: int) -> dict[str, Any]:
        """Return what the model reads at the last of ``count`` new tokens."""
        import torch

        return {"input_ids": torch.tensor([[*prompt, *[prompt[-1]] * (count - 1)]])}

    def _refuse_rounding(self, reason: str) -> ConfigError:
        return ConfigError(
            f"bitsandbytes cannot compute the base {self.settings.base} in 4 bits on this machine ({reason}): leave --load-in-4bit out."
        )

    def fit_length(self, model: Any, processor: Any) -> list[str]:
        """Do nothing: rows are cut before the base is loaded, and a finished model reads as much as the base."""
        return []

    def examples(self, data: TrainingData, processor: Any) -> dict[str, Examples]:
        """Return the rows with the tokens that are learned."""
        from rmlora.training.language_rows import LanguageRows

        self._padding = self._format.end if processor.pad_token_id is None else int(processor.pad_token_id)
        if self.settings.packing:
            from rmlora.training.packed_rows import PackedRows

            self._packed = PackedRows(data.splits["train"].rows, self._padding)
        return {name: LanguageRows(split.rows, self._padding) for name, split in data.splits.items()}

    def trainer(self, arguments: Mapping[str, Any], examples: Mapping[str, Examples], processor: Any) -> Trainer:
        """Return a trainer whose loss is a mean over all answer tokens of a step."""
        from rmlora.training.language_trainer import GroupedLanguageTrainer, LanguageTrainer

        kind = GroupedLanguageTrainer if self.settings.group_by_length else LanguageTrainer
        return self._made_by(kind, arguments, processor)

    def _made_by(self, kind: type[LanguageTrainer], arguments: Mapping[str, Any], processor: Any) -> Trainer:
        model, metric = arguments["model"], self.settings.metric
        model.config.use_cache = False  # of no use in training
        self._model, self._processor = model, processor
        self._answers: dict[str, list[str]] = {}
        return kind(
            scores=self._measure if metric else None,
            at_every_evaluation=self.settings.best_metric not in ("loss", None),
            train_collator=self._packed.collate if self._packed is not None else None,
            **arguments,
        )

    def evaluate(self, trainer: Trainer, examples: Mapping[str, Examples], split: str) -> Evaluation:
        """Return loss and perplexity per answer token, and the figures of generated answers."""
        output: Any = trainer.predict(examples[split], metric_key_prefix=split)
        names = [*(self._names if self.settings.metric else ()), "loss", "perplexity"]
        scores = {name: float(output.metrics[f"{split}_{name}"]) for name in names}
        if scores["loss"] != scores["loss"]:
            raise TrainingError(f"The trained model's {split} loss is NaN: lower --learning-rate.")
        tokens: Any = examples[split]
        return Evaluation(scores, {"answer_tokens": tokens.learned, **self._samples(split)})

    def metadata(self, model: PeftModel) -> dict[str, Any]:
        """Return how the base was asked, which generation must do alike."""
        return {
            "prompt_format": "raw" if self._continues else self._format.kind,
            "chat_template": None if self._continues else self._format.fingerprint,
            "end_tokens": self._end_tokens(),
            "max_length": self.settings.token_limit,
            **({"base_precision": "nf4"} if self.settings.load_in_4bit else {}),
        }

    def _measure(self, split: str) -> dict[str, float]:
        """Return figures of the answers that the model generates for a split."""
        from rmlora.training.generate_answers import generate_answers

        if self.settings.metric is None:
            return {}
        prompts, references = self._asked(split)
        self._answers[split] = generate_answers(
            self._model, prompts, self._text, end=self._end_tokens(), padding=self._padding,
            batch_size=2 * self.settings.batch_size, max_new_tokens=self.settings.max_new_tokens,
        )  # fmt: skip
        scores = score_answers(self.settings.metric, self._answers[split], references)
        self._names = tuple(scores)
        return scores

    def _asked(self, split: str) -> tuple[list[list[int]], list[str]]:
        """Return the prompts of a split, as tokens, and their answers."""
        return self._splits[split].prompts, self._splits[split].references

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._processor.decode(tokens, skip_special_tokens=True))

    def _end_tokens(self) -> list[int]:
        """Return the tokens that end an answer: the end-of-text token, and what ends the answers of the training data."""
        last = {row.ids[-1] for row in self._splits["train"].rows if row.answer[-1]} & self._format.special
        return sorted({self._format.end, *last})

    def _samples(self, split: str) -> dict[str, Any]:
        if split not in self._answers:
            return {}
        (prompts, references), answers = self._asked(split), self._answers[split]
        return {
            "answers": [
                {"prompt": self._processor.decode(prompt), "expected": reference, "generated": answer}
                for prompt, reference, answer in zip(
                    prompts[:_SHOWN], references[:_SHOWN], answers[:_SHOWN], strict=True
                )
            ]
        }

    def _check_prompts(self, data: TrainingData) -> None:
        for name, split in self._splits.items():
            if self.settings.metric is not None and name != "train" and not split.prompts:
                raise InputError(
                    f"No last answer of {data.splits[name].source} begins within {self.settings.token_limit} tokens, so --metric has "
                    "nothing to compare: raise --max-length."
                )

    def _check_metric(self, data: Conversations) -> None:
        if self.settings.metric is not None and data.form == "text":
            raise ConfigError(
                f"--metric {self.settings.metric} compares answers, and {data.source} holds plain texts without any: leave it out, "
                "or give prompts with completions."
            )


def _sees_the_future(model: Any) -> bool:
    """Return True if the output at a token changes with the tokens after it."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            first = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, 0].float()
            second = model(input_ids=torch.tensor([[5, 8, 4]])).logits[0, 0].float()
    finally:
        model.train(was_training)
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-4 * float(first.abs().max()))
