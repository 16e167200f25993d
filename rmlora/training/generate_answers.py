"""Greedy answers of a causal language model to many prompts, in left-padded batches (torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig

__all__ = ["generate_answers"]


def generate_answers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    *,
    end: Sequence[int],
    padding: int,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """Return the model's most likely continuation of each prompt, token by token, without the token that ends it.

    Prompts of similar length share a batch. Under data parallelism every process answers its share, and all get all answers.

    Args:
        model: PEFT's or transformers', in any mode; it is in evaluation mode meanwhile.
        prompts: tokens of each.
        decode: from tokens to text, without special tokens.
        end: tokens that end an answer.
        padding: token to pad with on the left; it is masked.
        batch_size: prompts at a time.
        max_new_tokens: most tokens of an answer.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, use_cache=True, eos_token_id=list(end),
        pad_token_id=padding,
    )  # fmt: skip
    state = PartialState()
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    own = order[state.process_index :: state.num_processes]
    was_training = model.training
    model.eval()
    answers: list[tuple[int, str]] = []
    try:
        with _generation_config(_transformers_model(model), settings), torch.inference_mode():
            for start in range(0, len(own), batch_size):
                chosen = own[start : start + batch_size]
                texts = _answers(model, [prompts[index] for index in chosen], decode, settings)
                answers += zip(chosen, texts, strict=True)
    finally:
        model.train(was_training)
    if state.num_processes > 1:
        answers = gather_object(answers)
    by_index = dict(answers)
    return [by_index[index] for index in range(len(prompts))]


def _answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    settings: GenerationConfig,
) -> list[str]:
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.tensor([[*[settings.pad_token_id] * (width - len(prompt)), *prompt] for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made: Any = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    ends = frozenset(settings.eos_token_id)
    return [decode(list(takewhile(lambda token: token not in ends, row))) for row in made[:, width:].tolist()]


def _transformers_model(model: Any) -> Any:
    """Return the model that generates, without PEFT's around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _generation_config(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Let nothing of the base's own generation settings count, such as a penalty for repetitions; then put them back."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
