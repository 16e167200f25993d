"""Greedy answers of a language model to many prompts, in padded batches (torch)."""

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
        padding: token to pad with, on the left or, for an encoder, on the right; it is masked.
        batch_size: prompts at a time.
        max_new_tokens: most tokens of an answer.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, use_cache=True, eos_token_id=list(end),
        pad_token_id=padding, **_beginning(_transformers_model(model)),
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
    encoder = bool(_transformers_model(model).config.is_encoder_decoder)

    def padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        blanks = [[value] * (width - len(row)) for row in rows]
        pairs = zip(rows, blanks, strict=True)
        return torch.tensor([[*row, *blank] if encoder else [*blank, *row] for row, blank in pairs], device=device)

    ids, mask = padded(prompts, settings.pad_token_id), padded([[1] * len(prompt) for prompt in prompts], 0)
    made: Any = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    answers = made[:, 1 if encoder else width :].tolist()  # a decoder's answer begins with its start token
    ends = frozenset(settings.eos_token_id)
    return [decode(list(takewhile(lambda token: token not in ends, row))) for row in answers]


def _beginning(model: Any) -> dict[str, int]:
    """Return which tokens begin the answers of a model with encoder and decoder."""
    found = {}
    for name in ("decoder_start_token_id", "forced_bos_token_id"):
        values = (getattr(config, name, None) for config in (model.generation_config, model.config))
        found[name] = next((value for value in values if value is not None), None)
    return {name: value for name, value in found.items() if value is not None}


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
