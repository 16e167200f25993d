"""Lazy reader of a transformers checkpoint directory: config.json and one or more safetensors shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rmlora.confine import confine
from rmlora.directory_kind import holds_adapter
from rmlora.errors import CheckpointError, InputError
from rmlora.file_models import BaseConfig, CheckpointIndex
from rmlora.json_files import check_values
from rmlora.readable import is_readable_directory, is_readable_file
from rmlora.storage import read_json
from rmlora.tensors import TensorFile, TensorInfo

__all__ = ["CONFIG_NAME", "EMBEDDING_NAMES", "INDEX_NAME", "SINGLE_NAME", "Checkpoint", "TiedOutput", "values_of"]

CONFIG_NAME = "config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

EMBEDDING_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight")
"""Endings of the tensor names of input embeddings."""

_OUTPUT_LAYERS = {"gpt_neox": "embed_out"}
"""Model type → name of its output layer, where it is not ``lm_head``."""


@dataclass(frozen=True)
class TiedOutput:
    """An output layer that shares the input embedding's weight."""

    layer: str
    """Module path of the output layer."""
    embedding: str
    """Tensor name of the input embedding."""


class Checkpoint:
    """A checkpoint directory, whose tensors are read one at a time.

    Attributes:
        path: the directory.
        shards: file name → :class:`TensorFile`, in the order of the index.
        tensors: tensor name → :class:`TensorInfo`, of all shards.
    """

    def __init__(self, path: Path) -> None:
        """Read the headers of every shard under ``path``.

        Raises:
            CheckpointError: there are no safetensors, a shard is missing or corrupt, or index and shards disagree.
        """
        self.path = Path(path)
        self.shards = self._open_shards()
        self.tensors: dict[str, TensorInfo] = {
            name: info for shard in self.shards.values() for name, info in shard.infos.items()
        }

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's ``config.json``."""
        path = self.path / CONFIG_NAME
        config: dict[str, Any] = read_json(path, what="Model configuration", finite=False)
        check_values(
            BaseConfig,
            config,
            where=f"Model configuration {path}",
            advice="fetch the model again",
            error=CheckpointError,
        )
        return config

    @cached_property
    def tied_output(self) -> TiedOutput | None:
        """The output layer that shares the input embedding's weight; None if the model has none."""
        layer = _OUTPUT_LAYERS.get(str(self.config.get("model_type")), "lm_head")
        stored = f"{layer}.weight" in self.tensors
        embedding = next((name for name in self.tensors if name.endswith(EMBEDDING_NAMES)), None)
        if embedding is None or not self.config.get("tie_word_embeddings", not stored):
            return None
        return TiedOutput(layer, embedding)

    def _open_shards(self) -> dict[str, TensorFile]:
        index = self.path / INDEX_NAME
        try:
            if not is_readable_directory(self.path):
                raise CheckpointError(f"Base model not found: {self.path} is not a directory.")
            if is_readable_file(index):
                return self._open_indexed(index)
            if is_readable_file(self.path / SINGLE_NAME):
                return {SINGLE_NAME: TensorFile(self.path / SINGLE_NAME)}
        except CheckpointError:
            raise
        except InputError as error:
            raise CheckpointError(str(error)) from None
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in self.path.glob(pattern))
        if pickled:
            raise CheckpointError(
                f"{self.path} holds only pickled weights ({pickled[0]}), which can run code when loaded: "
                "convert them to safetensors with transformers' save_pretrained first."
            )
        if holds_adapter(self.path):
            raise CheckpointError(f"{self.path} is an adapter, not a model: give the base that it was trained on.")
        raise CheckpointError(f"{self.path} holds no {SINGLE_NAME} and no {INDEX_NAME}: it is not a model checkpoint.")

    def _open_indexed(self, index: Path) -> dict[str, TensorFile]:
        weight_map = check_values(
            CheckpointIndex, read_json(index, what="Checkpoint index", finite=False), where=f"Checkpoint index {index}",
            advice="the index is broken, fetch it again", error=CheckpointError,
        ).weight_map  # fmt: skip
        shards: dict[str, TensorFile] = {}
        for file_name in dict.fromkeys(weight_map.values()):
            shard = confine(self.path, file_name, where=index)
            if shard.parent != self.path:
                raise CheckpointError(
                    f"{index} names the shard {file_name} in another directory, which is not supported."
                )
            if not is_readable_file(shard):
                raise CheckpointError(f"{index} names the shard {file_name}, which is missing: fetch it again.")
            shards[file_name] = TensorFile(shard)
        for name, file_name in weight_map.items():
            if name not in shards[file_name].infos:
                raise CheckpointError(f"{index} places tensor '{name}' in {file_name}, which does not hold it.")
        return shards


def values_of(key: str, config: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the values of ``key`` in a configuration and in the configurations inside it."""
    for name, value in config.items():
        if name == key and value is not None:
            yield value
        elif isinstance(value, dict):
            yield from values_of(key, value)
