"""The calls that are fuzzed: what commands and servers do with each kind of file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.formats import change_onnx
from benchmarks.fuzz.mutations import change_bytes
from rmlora import processors
from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.config import RMLoRAConfig
from rmlora.errors import InputError
from rmlora.images import open_image
from rmlora.package import load_package
from rmlora.pooling import read_pooling, read_text_length
from rmlora.spectrum import adapter_spectrum
from rmlora.storage import sha256_file
from rmlora.tasks import TASKS
from rmlora.training.conversations import TextColumns
from rmlora.training.data import Columns, load_split
from rmlora.training.embedding_columns import EmbeddingColumns
from rmlora.training.embedding_data import read_embedding_data
from rmlora.training.language_data import load_conversations
from rmlora.training.question_data import read_questions
from rmlora.training.resume import claim_run
from rmlora.training.table import Reading
from rmlora.training.tagged_data import read_tagged
from rmlora_converters.checkpoint_merge import merge_checkpoint
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter
from rmlora_converters.graph.passes.merge_weights import merge_graph
from rmlora_deploy.bench.bench_inputs import random_inputs
from rmlora_deploy.bundles.bundle import MODEL_FILE, Bundle
from rmlora_deploy.bundles.convert_adapter import TryOut, convert_adapter
from rmlora_deploy.bundles.manifest import read_manifest
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.bundles.processor import write_side_files
from rmlora_deploy.cli.predict_inputs import read_lines
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.pipeline import export_bundle
from rmlora_deploy.inference import open_bundle
from rmlora_deploy.inspection.adapter_report import describe_adapter
from rmlora_deploy.inspection.bundle_report import describe_bundle
from rmlora_deploy.loadtest.load_plan import Reference, read_texts
from rmlora_deploy.runtime import AdapterSession
from rmlora_deploy.serving.scaling.adapter_state import AdapterState
from rmlora_deploy.verification.verify_branches import verify_branches

TEXTS = ["w1 w2 unknown", "w4"]
TASK = TASKS["text-classification"]
_CONFIG = {"id2label": {"0": "red", "1": "green", "2": "blue"}}


@cache
def _try_out(bundle: Path) -> tuple[Bundle, TryOut]:
    """Return an opened bundle; it is not what is fuzzed, so one is enough."""
    opened = Bundle.open(bundle)
    return opened, TryOut.of(opened, opened.adapter_session(threads=1))


def adapter(directory: Path, file: str, rng: random.Random) -> None:
    """What merge, inspect, adapter add and, rarely, PEFT do with an adapter package."""
    loaded = load_package(directory / "adapter")
    describe_adapter(loaded, adapter_spectrum(loaded))
    try:
        merge_checkpoint(directory / "base", loaded, directory / "out", overwrite=True)
    except InputError:
        merge_checkpoint(directory / "base", loaded, directory / "out", overwrite=True, allow_base_mismatch=True)
    finally:
        opened, try_out = _try_out(directory / "bundle")
        convert_adapter(
            loaded, try_out.session.lora_inputs, try_out.session.input_types, name="x", task=opened.task,
            pooling=opened.manifest.pooling, base_config=_CONFIG, max_length=32, try_out=try_out, allow_base_mismatch=True,
        )  # fmt: skip
    if rng.random() < 0.05:
        _with_peft(directory)


def adapter_tensors(directory: Path, file: str, rng: random.Random) -> None:
    """The same for a package whose ``rmlora.json`` has the hash of the changed tensors."""
    metadata, tensors = directory / "adapter/rmlora.json", directory / file
    if tensors.is_file() and tensors.stat().st_size < 1 << 20:
        value = json.loads(metadata.read_text())
        metadata.write_text(json.dumps({**value, "tensors_sha256": sha256_file(tensors)}))
    adapter(directory, file, rng)


def _with_peft(directory: Path) -> None:
    from rmlora.torch_models import load_adapted

    load_adapted(directory / "base", directory / "adapter", task="text-classification", allow_base_mismatch=True)


def base(directory: Path, file: str, rng: random.Random) -> None:
    """What merge does with a base."""
    loaded = load_package(directory / "adapter")
    path = resolve_base(directory / "base")
    merge_checkpoint(path, loaded, directory / "out", overwrite=True, allow_base_mismatch=rng.random() < 0.5)


def base_config(directory: Path, file: str, rng: random.Random) -> None:
    """What merge, export and train do with a base's configuration."""
    checkpoint = Checkpoint(directory / "base")
    for task in TASKS.values():
        task.outputs.labels_in(checkpoint.config)
    _ = checkpoint.tied_output
    base(directory, file, rng)
    if rng.random() < 0.2:
        from rmlora.torch_models import load_task_model

        load_task_model(directory / "base", TASK, ["a", "b"])


def pooling(directory: Path, file: str, rng: random.Random) -> None:
    """What export does with the files of sentence-transformers."""
    read_text_length(directory / "base")
    read_pooling(directory / "base")


def graph(directory: Path, file: str, rng: random.Random) -> None:
    """What ``merge --onnx`` and ``export --onnx`` do with somebody's ONNX model."""
    path = directory / file
    loaded = load_package(directory / "adapter")
    merge_graph(path, loaded, directory / "out", base=Checkpoint(directory / "base"), overwrite=True)
    settings = ExportSettings(
        str(directory / "base"), {"one": directory / "adapter"}, directory / "out", mode="branches", graph=path,
        verify=False, overwrite=True,
    )  # fmt: skip
    export_bundle(settings)


def change_external(rng: random.Random, content: bytes) -> bytes:
    """Change a model that keeps its weights in another file, or that file."""
    return change_onnx(rng, content) if b"classifier" in content else change_bytes(rng, content)


def external(directory: Path, file: str, rng: random.Random) -> None:
    """What the commands do with an ONNX model whose weights are in another file."""
    graph(directory, "graph/external.onnx", rng)


def branches(directory: Path, file: str, rng: random.Random) -> None:
    """Open a graph with branches whose hash in the manifest is right, and run it."""
    batch = {"input_ids": np.full((2, 3), 4), "attention_mask": np.ones((2, 3), np.int64)}
    session = AdapterSession(directory / file, threads=1)
    session.register("one", lambda: read_onnx_adapter(directory / "bundle/adapters/one.onnx_adapter"))
    session.run(batch)
    session.run(batch, ["one", None])
    session.specialize("one")
    session.run(batch, "one")


def onnx_adapter(directory: Path, file: str, rng: random.Random) -> None:
    """Read an adapter of a bundle, and run it."""
    read = read_onnx_adapter(directory / file)
    for name in read:
        read[name].sum()
    _, try_out = _try_out(directory / "bundle")
    try_out.check("x", read)


def bundle(directory: Path, file: str, rng: random.Random) -> None:
    """What predict, inspect, list and verify do with a bundle."""
    opened = Bundle.open(directory / "bundle", check_files=False)
    describe_bundle(opened)
    for name in opened.adapters:
        opened.preprocessor(name)
    chosen: Any = next(iter(opened.adapters), None)
    with_answers = open_bundle(directory / "bundle", threads=1)
    (with_answers.embed if hasattr(with_answers, "embed") else with_answers.predict)(TEXTS, chosen)


def bundle_config(directory: Path, file: str, rng: random.Random) -> None:
    """What adapter add, predict and bench do with a bundle's copy of the base's configuration."""
    opened = Bundle.open(directory / "bundle", check_files=False)
    for task in TASKS.values():
        task.outputs.labels_in(opened.base_config)
    random_inputs(opened, 2, 4, 0)
    opened.preprocessor()(TEXTS)


def reference(directory: Path, file: str, rng: random.Random) -> None:
    """What ``verify --reference-only`` and ``adapter add`` do with stored outputs, of which the manifest has the right hash."""
    manifest = read_manifest(directory / "bundle/manifest.json")
    entry = manifest.adapters["one"].model_copy(update={"reference": "adapters/one.reference.safetensors"})
    opened = Bundle(directory / "bundle", manifest.model_copy(update={"adapters": {"one": entry}}))
    TryOut.of(opened, _seed_session(directory / "bundle" / MODEL_FILE))
    verify_branches(opened, None)


@cache
def _seed_session(model: Path) -> AdapterSession:
    return AdapterSession(model, threads=1)


@contextmanager
def _sometimes_without_transformers(rng: random.Random) -> Iterator[None]:
    """Let the toolkit's own tokenizer or image processor read the files, as where transformers is not installed."""
    installed = processors.is_installed
    if rng.random() < 0.4:
        processors.is_installed = lambda module: module != "transformers" and installed(module)
    try:
        yield
    finally:
        processors.is_installed = installed


def tokenizer(directory: Path, file: str, rng: random.Random) -> None:
    """Load the tokenizer that the file belongs to, and tokenize with it."""
    base = directory / file.partition("/")[0]
    if file == "base/tokenizer.json" or (base / "tokenizer.json").exists():
        with _sometimes_without_transformers(rng):
            _tokenize(directory, base, rng)
    else:  # only transformers reads the other forms
        _tokenize(directory, base, rng)


def _tokenize(directory: Path, base: Path, rng: random.Random) -> None:
    loaded = Preprocessor.open(
        base, TASK, max_length=rng.choice((None, 1, 16)), input_names=["input_ids", "attention_mask"]
    )
    TASK.inputs.length_limit(loaded.processor)
    TASK.inputs.essence(loaded.processor)
    loaded(TEXTS)
    if hasattr(loaded.processor, "save_pretrained"):
        (directory / "out").mkdir()
        write_side_files(directory / "out", base, {}, loaded.processor)


def image_processor(directory: Path, file: str, rng: random.Random) -> None:
    """Load an image processor and process images with it."""
    with _sometimes_without_transformers(rng):
        _process(directory)


def _process(directory: Path) -> None:
    task = TASKS["image-classification"]
    loaded = Preprocessor.open(directory / "images", task, max_length=None, input_names=["pixel_values"])
    if hasattr(loaded.processor, "to_dict"):
        task.inputs.essence(loaded.processor)
    loaded([directory / "images/image.png", directory / "images/image.bmp"])
    if hasattr(loaded.processor, "save_pretrained"):
        (directory / "out").mkdir()
        write_side_files(directory / "out", directory / "images", {}, loaded.processor)


def image(directory: Path, file: str, rng: random.Random) -> None:
    """Open an image from a path and from bytes."""
    path = directory / file
    kind = rng.randrange(3)
    if kind == 0 and path.is_file() and path.stat().st_size < 1 << 20:
        open_image(path.read_bytes())
    elif kind == 1 and path.is_file() and path.stat().st_size < 1 << 20:
        from base64 import b64encode

        from rmlora_deploy.serving.images import SentImage

        open_image(SentImage(f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}", 1, 25_000_000).decode())
    else:
        open_image(str(path))


def train_settings(directory: Path, file: str, rng: random.Random) -> None:
    """Start ``train --config``; the base that the settings name does not exist, so that no training begins."""
    import click

    from rmlora_deploy.cli.train import command

    try:
        command.main(["--config", str(directory / file)], standalone_mode=False)
    except click.ClickException:
        return


def data(directory: Path, file: str, rng: random.Random) -> None:
    """Read labeled data."""
    load_split(TASK, str(directory / file), Columns())


def task_data(directory: Path, file: str, rng: random.Random) -> None:
    """Read tagged words, questions with answers, texts to compare, or chats."""
    source, kind = str(directory / file), Path(file).stem
    if kind in ("tagged", "spans", "slots"):
        read_tagged(source, Columns())
    elif kind in ("squad", "questions"):
        read_questions(source, Columns())
    elif kind in ("scored", "triplets"):
        read_embedding_data(source, EmbeddingColumns())
    else:
        splits = {"train": source, "validation": source, "test": None}
        load_conversations(splits, TextColumns(), Reading(), validation_fraction=0.1, seed=0)


def small_file(directory: Path, file: str, rng: random.Random) -> None:
    """Read one of the small files that commands take."""
    path = directory / file
    if file.endswith("texts.txt"):
        read_texts(path)
        read_lines(path, None)
    elif file.endswith("answers.json"):
        Reference.read(path)
    elif file.endswith("state.json"):
        AdapterState.read(path)
    else:
        identity = {"base": "base", "epochs": 2.0, "rmlora": RMLoRAConfig().to_dict(), "data": {}}
        claim_run(path.parent, identity, resume=True)


def clean(directory: Path) -> None:
    """Delete what a reader wrote."""
    shutil.rmtree(directory / "out", ignore_errors=True)
