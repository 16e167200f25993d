"""Torch dataset of questions, window by window, with the tokens at which answers begin and end, and the loss over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from rmlora.answer_spans import LONGEST_ANSWER, no_answer_token
from rmlora.inputs import Arrays
from rmlora.offsets import OFFSETS
from rmlora.question_windows import CONTEXT, SOURCES, Window
from rmlora.training.answer_cells import Answer
from rmlora.training.language_rows import LearnedRows, Row

if TYPE_CHECKING:
    from rmlora.question_inputs import QuestionInputs
    from rmlora.text_pair import TextPair

__all__ = ["QuestionRows", "batch_loss", "kept_of_spans", "span_loss"]


class QuestionRows(LearnedRows):
    """Questions with their contexts, tokenized once. Each window is a row; its labels are the first and the last token of the answer.

    Where a window does not hold the whole answer, or there is none, both are the token that stands for that.

    Args:
        questions: with their contexts.
        answers: the right ones of every question; the first is learned.
        inputs: of the task.
        tokenizer: of the base.
        max_length: tokens of a window.
    """

    def __init__(
        self,
        questions: Sequence[TextPair],
        answers: Sequence[Sequence[Answer]],
        inputs: QuestionInputs,
        tokenizer: Any,
        max_length: int,
    ) -> None:
        self._inputs, self._tokenizer = inputs, tokenizer
        self._names = list(tokenizer.model_input_names)
        self.questions, self.answers = list(questions), list(answers)
        self.windows: list[Window] = []
        """Of all questions, in order."""
        self.owners: list[int] = []
        """Index of the question of every window."""
        self.unlearned = 0
        """Questions whose answer no window holds whole."""
        self.long_answers = 0
        """Answers with more than :data:`LONGEST_ANSWER` tokens, which are never given."""
        rows: list[Row] = []
        for number, (pair, right) in enumerate(zip(questions, answers, strict=True)):
            windows = inputs.parts(tokenizer, pair, max_length)
            spans = answer_tokens([window.arrays for window in windows], right[0] if right else None)
            self.unlearned += bool(right) and not any(found for _, found in spans)
            self.long_answers += any(found and last - first >= LONGEST_ANSWER for (first, last), found in spans)
            self.windows += windows
            self.owners += [number] * len(windows)
            for window, ((first, last), _) in zip(windows, spans, strict=True):
                rows.append({**{name: window.arrays[name] for name in self._names}, "labels": [first, last]})
        super().__init__(rows)

    @property
    def count(self) -> int:
        """Number of questions, each of which may have several rows."""
        return len(self.questions)

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return the model's inputs, int64 ``[rows, tokens]``, and ``labels`` ``[rows, 2]``."""
        arrays: list[Arrays] = [{name: row[name] for name in self._names} for row in rows]
        batch = {name: torch.from_numpy(array) for name, array in self._inputs.collate(self._tokenizer, arrays).items()}
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def answer_tokens(rows: Sequence[Arrays], answer: Answer | None) -> list[tuple[tuple[int, int], bool]]:
    """Return first and last token of an answer in every window of its context, and whether the window holds it whole.

    Characters that no token stands for, as accents that a tokenizer strips, do not count.
    """
    inside = [_tokens_in(row, answer) for row in rows]
    bounds = [
        (row[OFFSETS][tokens[0], 0], row[OFFSETS][tokens[-1], 1]) if len(tokens) else None
        for row, tokens in zip(rows, inside, strict=True)
    ]
    first = min((bound[0] for bound in bounds if bound), default=0)
    last = max((bound[1] for bound in bounds if bound), default=0)
    found = []
    for row, tokens, bound in zip(rows, inside, bounds, strict=True):
        nowhere = no_answer_token(row[SOURCES])
        whole = bound == (first, last)
        found.append(((int(tokens[0]), int(tokens[-1])) if whole else (nowhere, nowhere), whole))
    return found


def _tokens_in(row: Arrays, answer: Answer | None) -> npt.NDArray[np.intp]:
    """Return the tokens of a window, in order, that stand for characters of an answer."""
    if answer is None:
        return np.array([], np.intp)
    starts, stops = row[OFFSETS].astype(np.int64).T
    return np.flatnonzero((row[SOURCES] == CONTEXT) & (stops > starts) & (stops > answer.start) & (starts < answer.end))


def span_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Return the mean cross-entropy per beginning and end of an optimizer step, as transformers' models do for one batch.

    Args:
        outputs: of the model, ``start_logits`` and ``end_logits`` ``[rows, tokens]``.
        labels: ``[rows, 2]``: the tokens at which answers begin and end.
        num_items_in_batch: labels of the whole step, all forward passes and processes; None for those of ``labels``.
    """
    total = _row_losses(outputs.start_logits, outputs.end_logits, labels).sum()
    return total / (num_items_in_batch if num_items_in_batch is not None else labels.numel())


def batch_loss(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss of a model on a batch of :class:`QuestionRows`."""
    return span_loss(model(**{name: value for name, value in batch.items() if name != "labels"}), batch["labels"])


def kept_of_spans(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return both scores of every token and the row's loss, float32 ``[rows, tokens, 3]``: all that an evaluation needs."""
    start, end = logits[:2]
    losses = _row_losses(start, end, labels)[:, None].expand(start.shape)
    return torch.stack([start.float(), end.float(), losses], -1)


def _row_losses(start: torch.Tensor, end: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of both losses of every row."""
    both = [
        torch.nn.functional.cross_entropy(scores.float(), labels[:, side], reduction="none")
        for side, scores in enumerate((start, end))
    ]
    return both[0] + both[1]
