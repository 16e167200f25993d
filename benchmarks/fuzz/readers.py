"""Every reader of data from outside: which seeds it reads, how they are changed, and the call that must not fail unheard.

A reader is good if it returns or raises :class:`rmlora.errors.RMLoRAError`, whose text is the sentence that users see.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz import commands, reading, served
from benchmarks.fuzz.formats import change_image, change_onnx, change_safetensors, replace_file
from benchmarks.fuzz.mutations import (
    Mutation,
    any_of,
    change_bytes,
    change_json,
    change_small_file,
    change_text,
    numbers_in_bytes,
)
from benchmarks.fuzz.yaml_texts import change_yaml

__all__ = ["READERS", "FuzzedReader", "change"]

_REPLACED = 0.01
"""Share of inputs in which something else stands where a file is expected."""

_JSON = any_of((8, change_json), (2, change_text))
_ADAPTER = any_of((5, numbers_in_bytes), (5, change_bytes))


@dataclass(frozen=True)
class FuzzedReader:
    """One reader."""

    name: str
    folders: tuple[str, ...]
    """Folders of the seeds that it needs."""
    files: tuple[str, ...]
    """The files to change, one of them for every input."""
    mutate: Mutation
    read: Callable[[Path, str, random.Random], None]
    """Reads the changed file in a directory like that of the seeds."""
    weight: int = 10
    """Its share of the inputs: less for a reader that takes long."""

    def prepare(self, seeds: Path, directory: Path) -> None:
        """Copy the seeds that the reader needs."""
        for folder in self.folders:
            shutil.copytree(seeds / folder, directory / folder)


def change(reader: FuzzedReader, directory: Path, seeds: Path, rng: random.Random) -> tuple[str, str]:
    """Change one of the reader's files in ``directory``; return its name and what was done."""
    file = rng.choice(reader.files)
    if rng.random() < _REPLACED:
        return file, replace_file(rng, directory / file)
    (directory / file).write_bytes(reader.mutate(rng, (seeds / file).read_bytes()))
    return file, "changed"


def _reader(
    name: str, weight: int, files: Sequence[str], mutate: Mutation, read: Callable[[Path, str, random.Random], None], *,
    needs: Sequence[str] = (),
) -> FuzzedReader:  # fmt: skip
    folders = dict.fromkeys([*(file.partition("/")[0] for file in files), *needs])
    return FuzzedReader(name, tuple(folders), tuple(files), mutate, read, weight)


_SHARDS = ("base/model-00001-of-00002.safetensors", "base/model-00002-of-00002.safetensors")
_REFERENCES = ("bundle/reference.safetensors", "bundle/adapters/one.reference.safetensors")
_TOKENIZER = ("base/tokenizer.json", "base/tokenizer_config.json", "base/config.json")
_VOCABULARIES = (
    "words/vocab.txt", "words/tokenizer_config.json", "words/special_tokens_map.json", "words/added_tokens.json", "pieces/vocab.json",
    "pieces/merges.txt", "pieces/tokenizer_config.json",
)  # fmt: skip
_POOLING = ("base/modules.json", "base/1_Pooling/config.json", "base/sentence_bert_config.json")
_IMAGES = tuple(f"images/{name}" for name in (
    "image.png", "image.jpg", "image.gif", "image.bmp", "image.tiff", "image.webp", "palette.png", "cmyk.tiff", "deep.png",
))  # fmt: skip
_TASK_DATA = tuple(f"tasks/{name}" for name in (
    "tagged.jsonl", "spans.jsonl", "slots.conll", "squad.json", "questions.jsonl", "scored.jsonl", "triplets.csv", "chats.jsonl",
))  # fmt: skip
_DATA = ("data/data.csv", "data/data.tsv", "data/data.json", "data/data.jsonl")

READERS: dict[str, FuzzedReader] = {
    reader.name: reader
    for reader in (
        _reader("adapter-tensors", 8, ["adapter/adapter_model.safetensors"], change_safetensors, reading.adapter_tensors, needs=["base", "bundle"]),
        _reader("adapter-config", 10, ["adapter/adapter_config.json"], _JSON, reading.adapter, needs=["base", "bundle"]),
        _reader("adapter-metadata", 8, ["adapter/rmlora.json"], _JSON, reading.adapter, needs=["base", "bundle"]),
        _reader("base-config", 8, ["base/config.json"], _JSON, reading.base_config, needs=["adapter"]),
        _reader("base-index", 6, ["base/model.safetensors.index.json"], _JSON, reading.base, needs=["adapter"]),
        _reader("base-tensors", 6, _SHARDS, change_safetensors, reading.base, needs=["adapter"]),
        _reader("pooling", 6, _POOLING, _JSON, reading.pooling, needs=["adapter"]),
        _reader("onnx-model", 8, ["graph/model.onnx"], change_onnx, reading.graph, needs=["adapter", "base"]),
        _reader("onnx-branches", 12, ["bundle/model.onnx"], change_onnx, reading.branches),
        _reader("onnx-weights", 6, ["graph/external.onnx", "graph/model.onnx.data"], reading.change_external, reading.external,
                needs=["adapter", "base"]),
        _reader("onnx-adapter", 16, ["bundle/adapters/one.onnx_adapter"], _ADAPTER, reading.onnx_adapter),
        _reader("manifest", 20, ["bundle/manifest.json"], _JSON, reading.bundle),
        _reader("bundle-config", 6, ["bundle/config.json"], _JSON, reading.bundle_config),
        _reader("reference", 6, _REFERENCES, change_safetensors, reading.reference),
        _reader("tokenizer", 20, _TOKENIZER, _JSON, reading.tokenizer),
        _reader("vocabulary", 12, _VOCABULARIES, change_small_file, reading.tokenizer),
        _reader("image-processor", 16, ["images/preprocessor_config.json"], _JSON, reading.image_processor),
        _reader("images", 20, _IMAGES, change_image, reading.image),
        _reader("train-settings", 12, ["settings/run.yaml"], change_yaml, reading.train_settings),
        _reader("data", 14, _DATA, change_small_file, reading.data),
        _reader("task-data", 16, _TASK_DATA, change_small_file, reading.task_data),
        _reader("small-files", 12, ["others/texts.txt", "others/answers.json", "others/state.json", "others/run/settings.json"],
                change_small_file, reading.small_file),
        _reader("requests", 24, [f"requests/{route}.json" for route in served.ROUTES], served.change_request, served.send,
                needs=["bundle", "vectors", "adapter"]),
        _reader("commands", 24, tuple(commands.FILES), commands.change_any, commands.run_command, needs=["second"]),
    )
}  # fmt: skip
"""Name → reader."""
