"""A language model in PyTorch with an adapter of PEFT's, to compare a graph with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GreedyText", "TorchDecoder"]

_BATCH = 16
"""Prompts that are answered at a time."""


@dataclass(frozen=True)
class GreedyText:
    """A continuation by the likeliest token each time."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    """For each token, how far its logit is above the next likeliest one's."""


class TorchDecoder:
    """A model in evaluation mode.

    Args:
        model: PEFT's model, or a transformers model.
        what: the adapter, for error messages.
    """

    def __init__(self, model: nn.Module, what: str) -> None:
        self._model, self._what = model.eval(), what

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits ``[positions, vocabulary]`` of a text.

        Raises:
            InputError: they are not finite, so nothing can be compared with them.
        """
        found: npt.NDArray[np.float32] = self._run(tokens, None).logits[0].float().numpy()
        if not np.isfinite(found).all():
            raise InputError(
                f"PyTorch itself gives NaN or infinity with {self._what}: the base or the adapter is damaged, train or download it again."
            )
        return found

    def continued(self, tokens: Sequence[int], count: int, ends: frozenset[int]) -> GreedyText:
        """Return at most ``count`` tokens that follow a text, up to one of ``ends``."""
        chosen: list[int] = []
        margins: list[float] = []
        fed, cache = list(tokens), None
        while len(chosen) < count and not (chosen and chosen[-1] in ends):
            output = self._run(fed, cache)
            cache = output.past_key_values
            best, second = output.logits[0, -1].float().topk(2).values.tolist()
            chosen.append(int(output.logits[0, -1].argmax()))
            margins.append(best - second)
            fed = chosen[-1:]
        return GreedyText(tuple(chosen), tuple(margins))

    def answers(
        self, prompts: Sequence[Sequence[int]], count: int, ends: frozenset[int], decode: Callable[[Sequence[int]], str]
    ) -> list[str]:
        """Return the likeliest answer to every prompt.

        Args:
            prompts: tokens of each.
            count: most tokens of an answer.
            ends: tokens that end an answer.
            decode: from tokens to text.
        """
        from rmlora.training.generate_answers import generate_answers

        end = sorted(ends)
        return generate_answers(
            self._model, prompts, decode, end=end, padding=end[0], batch_size=_BATCH, max_new_tokens=count
        )

    def _run(self, tokens: Sequence[int], cache: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(input_ids=torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True)
