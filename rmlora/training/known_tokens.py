"""Checks that a base has an embedding for every token that its tokenizer makes of the data, and for padding.

A tokenizer to which tokens were added knows more than weights that were not resized. Such a row, or the first batch with
padding, would end training with an error that names neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rmlora.errors import CheckpointError

if TYPE_CHECKING:
    from rmlora.training.features import Examples

__all__ = ["check_tokens"]


def check_tokens(model: Any, examples: Mapping[str, Examples], tokenizer: Any, base: str) -> None:
    """Raise :class:`CheckpointError` if rows, or what they are padded with, have tokens that the model has no embedding for.

    Args:
        model: that is to be trained.
        examples: split → rows; those without tokens are not looked at.
        tokenizer: of the base.
        base: what the user calls it.
    """
    splits = {name: rows.highest_token for name, rows in examples.items() if hasattr(rows, "highest_token")}
    if not splits:
        return
    try:
        known = int(model.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):  # CANINE computes with characters and needs no table of tokens
        return
    padding = tokenizer.pad_token_id
    if padding is not None and padding >= known:
        raise CheckpointError(
            f"The tokenizer of the base {base} pads with {_named(tokenizer, padding)}, but the base has embeddings for {known} tokens, "
            "counted from 0: name one of these, such as the end-of-text token, as pad_token in its tokenizer_config.json."
        )
    for split, token in splits.items():
        if token >= known:
            raise CheckpointError(
                f"The {split} data has {_named(tokenizer, token)} of the tokenizer of the base {base}, but the base has embeddings for "
                f"{known} tokens, counted from 0: resize it (transformers' resize_token_embeddings) and save it again, or take the "
                "tokenizer that it was made with."
            )


def _named(tokenizer: Any, token: int) -> str:
    return f"token {token} ({tokenizer.convert_ids_to_tokens(int(token))!r})"
