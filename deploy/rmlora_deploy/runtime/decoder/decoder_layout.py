"""What ``genai_config.json`` says of a decoder: how its inputs and outputs are called, its limits, and where it stops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rmlora.json_files import check_values
from rmlora.storage import read_json

__all__ = ["GENAI_CONFIG", "DecoderLayout"]

GENAI_CONFIG = "genai_config.json"
_ADVICE = "export the bundle again"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Inputs(_Part):
    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    past_key_names: str
    past_value_names: str


class _Outputs(_Part):
    logits: str = "logits"
    present_key_names: str
    present_value_names: str


class _Decoder(_Part):
    head_size: int = Field(ge=1, lt=2**20)
    num_hidden_layers: int = Field(ge=1, lt=2**16)
    num_key_value_heads: int = Field(ge=1, lt=2**16)
    inputs: _Inputs
    outputs: _Outputs


class _Model(_Part):
    context_length: int = Field(ge=1, lt=2**31)
    eos_token_id: int | list[int]
    vocab_size: int = Field(ge=1, lt=2**31)
    decoder: _Decoder


class _Search(_Part):
    past_present_share_buffer: bool = False


class _GenaiConfig(_Part):
    model: _Model
    search: _Search = Field(default_factory=_Search)


@dataclass(frozen=True)
class DecoderLayout:
    """Names and sizes of a decoder's inputs and outputs."""

    input_ids: str
    attention_mask: str
    position_ids: str
    logits: str
    past: tuple[str, ...]
    """Inputs with the keys and values of every layer, one after the other."""
    present: tuple[str, ...]
    """Outputs with them, in the same order."""
    head_size: int
    key_value_heads: int
    context_length: int
    """Tokens of the longest text, prompt and answer together."""
    end_tokens: frozenset[int]
    """Tokens that end an answer."""
    vocabulary: int
    """Number of tokens."""
    shares_memory: bool
    """True if past and present are one memory, as in graphs with grouped-query attention."""

    @classmethod
    def read(cls, directory: Path) -> DecoderLayout:
        """Read the layout of the bundle in ``directory``.

        Raises:
            InputError: the file is missing, or has a wrong or missing key.
        """
        file = directory / GENAI_CONFIG
        value: Any = read_json(file, what="Decoder configuration", finite=False)
        config = check_values(_GenaiConfig, value, where=str(file), advice=_ADVICE)
        model, decoder = config.model, config.model.decoder
        layers = range(decoder.num_hidden_layers)
        ends = model.eos_token_id if isinstance(model.eos_token_id, list) else [model.eos_token_id]
        return cls(
            decoder.inputs.input_ids,
            decoder.inputs.attention_mask,
            decoder.inputs.position_ids,
            decoder.outputs.logits,
            _names(layers, decoder.inputs.past_key_names, decoder.inputs.past_value_names),
            _names(layers, decoder.outputs.present_key_names, decoder.outputs.present_value_names),
            decoder.head_size,
            decoder.num_key_value_heads,
            model.context_length,
            frozenset(ends),
            model.vocab_size,
            config.search.past_present_share_buffer,
        )


def _names(layers: range, key: str, value: str) -> tuple[str, ...]:
    return tuple(name.replace("%d", str(layer)) for layer in layers for name in (key, value))
