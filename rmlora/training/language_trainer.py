"""The transformers ``Trainer`` for causal language models: loss on the answers, perplexity, generated answers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch

from rmlora.training.best_checkpoint import BestCheckpointTrainer
from rmlora.training.ignored import IGNORED
from rmlora.training.sampler import LengthGroupingTrainer

__all__ = ["GroupedLanguageTrainer", "LanguageTrainer", "answer_loss", "perplexity"]

GenerationScores = Callable[[str], Mapping[str, float]]
"""Split → figures of the answers that the model generates for it."""


def answer_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None, *, shift: int = 1) -> torch.Tensor:
    """Return the mean negative log-likelihood per answer token of an optimizer step.

    Args:
        outputs: of the model; its logits may cover only the last positions of the rows.
        labels: ``[rows, tokens]``: the token itself where it is learned, else :data:`IGNORED`.
        num_items_in_batch: answer tokens of the whole step, all forward passes and processes; None for those of ``labels``.
        shift: places between a token and the logits that predict it.
    """
    wanted, targets = _predictions(outputs.logits, labels, shift)
    total = torch.nn.functional.cross_entropy(wanted.float(), targets, reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else max(len(targets), 1))


def perplexity(loss: float) -> float:
    """Return ``exp(loss)``; infinity where that is too large for a number."""
    return math.exp(loss) if loss < 700 else math.inf


def _predictions(logits: torch.Tensor, labels: torch.Tensor, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores ``[answer tokens, vocabulary]`` that predict answer tokens, and these tokens."""
    targets = labels[:, -logits.shape[1] :][:, shift:]
    learned = targets != IGNORED
    return logits[:, : targets.shape[1]][learned], targets[learned]


class LanguageTrainer(BestCheckpointTrainer):
    """A trainer whose evaluation is exact: the loss is the mean over all answer tokens, not over batches.

    Args:
        scores: figures of generated answers; None measures none.
        at_every_evaluation: generate whenever the model is evaluated, not only at the end.
        train_collator: makes the batches that are trained on; None makes them as those of an evaluation.
    """

    shift: ClassVar[int] = 1
    """Places between a token and the logits that predict it."""

    def __init__(
        self,
        *,
        scores: GenerationScores | None = None,
        at_every_evaluation: bool = False,
        train_collator: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(
            compute_loss_func=partial(answer_loss, shift=self.shift), compute_metrics=_mean_over_tokens, **options
        )
        self._scores, self._always, self._train_collator = scores, at_every_evaluation, train_collator
        forward = options["model"].get_base_model().forward
        self._keeps_logits = "logits_to_keep" in inspect.signature(forward).parameters

    def get_train_dataloader(self) -> Any:
        """Return the batches that are trained on: an evaluation's have a row for each example, these may not."""
        usual = self.data_collator
        self.data_collator = self._train_collator or usual
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = usual

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Compute logits from the first answer token of the batch on: the output layer is the widest of all."""
        return super().compute_loss(model, self._with_needed_logits(inputs), *args, **options)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return the loss, and for each row the sum of its losses and the number of its answer tokens ``[rows, 2]``."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        others = {name: value for name, value in self._with_needed_logits(inputs).items() if name != "labels"}
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**others).logits
        wanted, targets = _predictions(logits, labels, self.shift)
        losses = torch.nn.functional.cross_entropy(wanted.float(), targets, reduction="none").double()
        rows = (labels[:, -logits.shape[1] :][:, self.shift :] != IGNORED).nonzero()[:, 0]
        sums = losses.new_zeros(len(labels), 2)
        sums[:, 0].index_add_(0, rows, losses)
        sums[:, 1].index_add_(0, rows, torch.ones_like(losses))
        return losses.mean(), sums, sums[:, 1]

    def evaluation_loop(self, dataloader: Any, *args: Any, **options: Any) -> Any:
        """Evaluate, and add the figures of generated answers."""
        output: Any = super().evaluation_loop(dataloader, *args, **options)
        prefix = options.get("metric_key_prefix", "eval")
        if self._scores is not None and (self._always or prefix != "eval"):
            scores = self._scores("validation" if prefix == "eval" else prefix)
            output.metrics.update({f"{prefix}_{name}": value for name, value in scores.items()})
        return output

    def _with_needed_logits(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if not self._keeps_logits:
            return inputs
        if "attention_mask" not in inputs:
            return _with_columns(inputs)
        learned = (inputs["labels"] != IGNORED).any(0)
        first = int(learned.int().argmax())
        return {**inputs, "logits_to_keep": inputs["labels"].shape[1] - max(first - 1, 0)}


class GroupedLanguageTrainer(LanguageTrainer, LengthGroupingTrainer):
    """A language model's trainer with batches of rows of similar length."""


def _with_columns(inputs: dict[str, Any]) -> dict[str, Any]:
    """Ask for the logits of those positions of packed rows that predict a learned token in any row.

    The labels are reduced to the same positions, moved by one, as the loss expects them; one more position ends both.
    """
    labels = inputs["labels"]
    after = (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
    ends = after.new_full((1,), labels.shape[1] - 1)
    kept = torch.cat([labels[:, :1], labels[:, after + 1]], 1)
    return {**inputs, "labels": kept, "logits_to_keep": torch.cat([after, ends])}


def _mean_over_tokens(prediction: Any) -> dict[str, float]:
    """Return loss and perplexity per answer token; the trainer's own loss is a mean over batches."""
    total, tokens = prediction.predictions.sum(0)
    loss = float(total / max(tokens, 1))
    return {"loss": loss, "perplexity": perplexity(loss)}
