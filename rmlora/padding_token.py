"""Which token pads the batches of a text model: the tokenizer decides, and the model must know it.

Classifiers of the causal kind (Llama, Qwen, GPT-2, …) take the scores of the last token that is not padding. Their
configurations often name no padding token, or another one than the tokenizer: those of Qwen 2.5 and Llama 3 made for chats
name the token that ends a turn. The scores would then be those of padding, and depend on the longer texts of the batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmlora.errors import InputError
from rmlora.processors import load_tokenizer

__all__ = ["set_padding_token"]


def set_padding_token(model: Any, directory: Path, *, trust_remote_code: bool = False) -> None:
    """Set the padding token in the configuration of ``model``: the tokenizer's, else the model's own or its end-of-text token.

    Args:
        model: of transformers.
        directory: of the base; it may lack a tokenizer.
        trust_remote_code: run code that comes with the tokenizer.
    """
    token = _of_tokenizer(directory, trust_remote_code=trust_remote_code)
    for config in (model.config, model.config.get_text_config()):
        own, end = (getattr(config, name, None) for name in ("pad_token_id", "eos_token_id"))
        if token is not None:
            config.pad_token_id = token
        elif own is None:
            config.pad_token_id = end[0] if isinstance(end, (list, tuple)) else end


def _of_tokenizer(directory: Path, *, trust_remote_code: bool) -> int | None:
    try:
        token = load_tokenizer(directory, trust_remote_code=trust_remote_code).pad_token_id
    except InputError:  # whoever needs the tokenizer says what is wrong with it
        return None
    return None if token is None else int(token)
