"""What stands beside a traced language model's graph: ``genai_config.json`` and the tokenizer's files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rmlora.checkpoint import Checkpoint
from rmlora.confine import confine_files
from rmlora.readable import is_readable_file
from rmlora.storage import read_json, write_json
from rmlora_deploy.bundles.bundle import MODEL_FILE
from rmlora_deploy.exporter.decoder.trace_decoder import CacheShape
from rmlora_deploy.runtime.decoder.decoder_layout import GENAI_CONFIG

__all__ = ["write_traced_files"]

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length", "max_seq_len")
"""What models call the tokens of the longest text."""
_NO_LIMIT = 2048
"""Tokens of the longest text where the model has no limit, as BLOOM, and does not say what it was trained on."""
_TYPE = "decoder"
"""What onnxruntime_genai calls any model with these inputs and outputs."""


def write_traced_files(
    directory: Path, checkpoint: Checkpoint, graph: ir.Model, shape: CacheShape, config: Any
) -> None:
    """Write the files into ``directory``.

    Args:
        directory: of the graph.
        checkpoint: the model.
        graph: for the names of its inputs.
        shape: of its cache.
        config: its transformers configuration.
    """
    write_json(directory / GENAI_CONFIG, _genai_config(checkpoint, graph, shape, config))
    for name in _TOKENIZER_FILES:
        if is_readable_file(checkpoint.path / name):
            confine_files(checkpoint.path, [name])
            shutil.copyfile(checkpoint.path / name, directory / name)


def _genai_config(checkpoint: Checkpoint, graph: ir.Model, shape: CacheShape, config: Any) -> dict[str, Any]:
    generation = checkpoint.path / "generation_config.json"
    given = read_json(generation, what="Generation configuration", finite=False) if generation.is_file() else {}
    ends = _token(given, config, "eos_token_id")
    ends = ends if ends is not None else []
    length = next((size for name in _LENGTHS if (size := getattr(config, name, None))), _NO_LIMIT)
    inputs = {
        name: name
        for value in graph.graph.inputs
        if (name := str(value.name)) in ("input_ids", "attention_mask", "position_ids")
    }
    return {
        "model": {
            "type": _TYPE,
            "bos_token_id": _token(given, config, "bos_token_id"),
            "eos_token_id": ends,
            "pad_token_id": _padding(_token(given, config, "pad_token_id"), ends),
            "context_length": int(length),
            "vocab_size": int(config.vocab_size),
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL_FILE,
                "head_size": shape.size,
                "hidden_size": int(config.hidden_size),
                "inputs": {
                    **inputs,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": int(config.num_attention_heads),
                "num_hidden_layers": shape.layers,
                "num_key_value_heads": shape.heads,
            },
        },
        "search": {"do_sample": False, "max_length": int(length), "past_present_share_buffer": True},
    }


def _token(given: Any, config: Any, name: str) -> Any:
    found = given.get(name) if isinstance(given, dict) else None
    return found if found is not None else getattr(config, name, None)


def _padding(found: int | None, ends: int | Sequence[int]) -> int:
    """Return the padding token, which onnxruntime_genai needs; a model without one is padded with the token that ends a text."""
    if found is not None:
        return int(found)
    return int(ends) if isinstance(ends, int) else int(next(iter(ends), 0))
