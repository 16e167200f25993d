"""Tokenizing with the package ``tokenizers`` alone, exactly as transformers does with the same files.

A directory that transformers wrote holds the whole tokenizer in ``tokenizer.json``: normalization, splitting, vocabulary and
special tokens. ``tokenizer_config.json`` adds what is applied from outside: length limit, padding and truncation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import CheckpointError, install_command
from rmlora.library_calls import library_call
from rmlora.storage import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PlainTokenizer"]

_NO_LIMIT = 10**20
"""transformers ignores length limits above this."""

_LEFT = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "XLNetTokenizer"}
"""Classes that pad on the left where the files do not say it."""


class PlainTokenizer:
    """A tokenizer read from ``tokenizer.json``; the attributes are named as in transformers.

    Args:
        tokenizer: of the package ``tokenizers``.
        config: content of ``tokenizer_config.json``.
    """

    def __init__(self, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
        self.model_max_length = int(config.get("model_max_length") or _NO_LIMIT * 10)
        self.padding_side = str(config.get("padding_side") or ("left" if name in _LEFT else "right"))
        self.truncation_side = str(config.get("truncation_side") or "right")
        names = config.get("model_input_names")
        self._makes_types = names is None or "token_type_ids" in names
        self.pad_token_type_id = int(config.get("pad_token_type_id") or 0)
        pad = _content(config.get("pad_token")) or _content(config.get("eos_token"))
        self.pad_token_id = tokenizer.token_to_id(pad) if pad is not None else None
        tokenizer.no_padding()
        if "split_special_tokens" in config:
            tokenizer.encode_special_tokens = bool(config["split_special_tokens"])

    @classmethod
    def open(cls, directory: Path) -> PlainTokenizer:
        """Read the tokenizer in ``directory``.

        Raises:
            CheckpointError: transformers is needed for it: there is no ``tokenizer.json``, or it comes with code of its own.
        """
        from tokenizers import Tokenizer

        file, settings = directory / "tokenizer.json", directory / "tokenizer_config.json"
        config = read_json(settings, what="Tokenizer configuration", finite=False) if settings.is_file() else {}
        if not isinstance(config, dict) or not file.is_file() or config.get("auto_map"):
            what = "comes with code of its own" if file.is_file() else "is not stored as tokenizer.json"
            raise CheckpointError(
                f"The tokenizer in {directory} {what}, and without transformers it cannot be used: run  "
                f"{install_command('serve', 'transformers', alone=True)}  and try again."
            )
        special = directory / "special_tokens_map.json"  # of transformers 4
        if special.is_file():
            tokens = read_json(special, what="Special tokens", finite=False)
            config = {**(tokens if isinstance(tokens, dict) else {}), **config}
        with library_call(
            lambda reason: CheckpointError(
                f"{directory} has no usable tokenizer ({reason} in {file.name}): fetch it again."
            )
        ):
            tokenizer = Tokenizer.from_file(str(file))
        return cls(tokenizer, config)

    def __call__(
        self,
        text: Sequence[str],
        text_pair: Sequence[str] | None = None,
        *,
        truncation: bool = True,
        max_length: int | None = None,
        return_offsets_mapping: bool = False,
    ) -> dict[str, list[Any]]:
        """Return input name → token ids, masks and types for each text, or pair of texts; arguments as in transformers."""
        limit = max_length or (self.model_max_length if self.model_max_length < _NO_LIMIT else None)
        if truncation and limit:
            self._tokenizer.enable_truncation(limit, direction=self.truncation_side)
        else:
            self._tokenizer.no_truncation()
        given = list(text) if text_pair is None else list(zip(text, text_pair, strict=True))
        made = self._tokenizer.encode_batch(given)
        offsets = {"offset_mapping": [item.offsets for item in made]} if return_offsets_mapping else {}
        types = {"token_type_ids": [item.type_ids for item in made]} if self._makes_types else {}
        return {
            "input_ids": [item.ids for item in made],
            "attention_mask": [item.attention_mask for item in made],
            **types,
            **offsets,
        }

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer of the package ``tokenizers``."""
        return self._tokenizer

    def get_vocab(self) -> dict[str, int]:
        """Return token → id."""
        return dict(self._tokenizer.get_vocab())


def _content(token: Any) -> str | None:
    """Return the text of a special token, which may be stored with its settings."""
    value = token.get("content") if isinstance(token, dict) else token
    return str(value) if value is not None else None
