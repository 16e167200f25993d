"""Names that come from data never lead out of their directory, whatever kind of file they stand in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from rmlora.checkpoint import INDEX_NAME, Checkpoint
from rmlora.confine import confine
from rmlora.errors import InputError
from rmlora.package import load_package
from rmlora.pooling import read_pooling
from rmlora.processors import load_tokenizer
from rmlora.storage import sha256_file, write_json
from rmlora_converters.graph.files.model_file import load_model
from rmlora_converters.side_files import copy_side_files
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.changes import PENDING_FILE
from rmlora_deploy.runtime.providers import create_session
from tests.helpers.cli import ROOT, fails, run, tokenizer
from tests.helpers.handmade import word_bundle
from tests.helpers.models import adapt, build, lora_config, save_adapter

OUTSIDE = "which is not a path inside|which is a link that leads out of"
TRICKS: dict[str, Callable[[Path, Path], str]] = {
    "absolute": lambda directory, victim: str(victim),
    "parent": lambda directory, victim: f"../{victim.name}",
    "inner parent": lambda directory, victim: f"a/../../{victim.name}",
    "linked file": lambda directory, victim: link(directory / "linked", victim),
    "linked directory": lambda directory, victim: link(directory / "linked", victim.parent) + f"/{victim.name}",
    "circle": lambda directory, victim: link(directory / "linked", Path("linked")),
    "nul": lambda directory, victim: f"{victim.name}\0",
    "drive": lambda directory, victim: f"C:\\{victim.name}",
    "backslash": lambda directory, victim: f"..\\{victim.name}",
    "empty": lambda directory, victim: "",
}
"""Ways to name a file outside a directory: each prepares the directory and returns the name."""


def link(path: Path, target: Path) -> str:
    """Make a link and return its name."""
    path.symlink_to(target)
    return path.name


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that nobody may read, change or delete."""
    file = tmp_path / "victim"
    save_file({"w": np.zeros(8, np.float32)}, file)
    return file


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "fixtures" / "bundles-v1" / "vectors", tmp_path / "bundle")
    return tmp_path / "bundle"


each_trick = pytest.mark.parametrize("trick", TRICKS)


@each_trick
@pytest.mark.parametrize("key", ["files", "model", "adapter files", "adapter file", "adapter reference"])
def test_manifests(bundle: Path, victim: Path, key: str, trick: str) -> None:
    before = victim.read_bytes()
    name = TRICKS[trick](bundle, victim)
    manifest = json.loads((bundle / "manifest.json").read_text())
    near = manifest["adapters"]["near"]
    if key.startswith("adapter f") or key == "adapter reference":
        near.update({"adapter files": {"files": {**near["files"], name: "0"}}, "adapter file": {"file": name}}.get(key, {"reference": name}))  # fmt: skip
    else:
        (manifest if key == "files" else manifest["model"])["files"][name] = "0"
    write_json(bundle / "manifest.json", manifest)
    with pytest.raises(InputError, match=OUTSIDE):
        Bundle.open(bundle, check_files=False)
    fails(3, "manifest.json names the file", "adapter", "remove", bundle, "near")
    fails(3, "manifest.json names the file", "predict", bundle, "w1")
    assert victim.read_bytes() == before


@each_trick
def test_unfinished_changes(bundle: Path, victim: Path, trick: str) -> None:
    write_json(bundle / PENDING_FILE, [TRICKS[trick](bundle, victim)])
    fails(3, "names the file", "adapter", "remove", bundle, "near")
    assert victim.exists()


def test_unfinished_changes_never_delete_what_the_manifest_lists(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["adapters"]["near"]["files"] |= {"model.onnx": "0", "tokenizer.json": "0", "manifest.json": "0"}
    write_json(bundle / "manifest.json", manifest)
    assert run("adapter", "remove", bundle, "near").code == 0
    assert not (bundle / "adapters" / "near.onnx_adapter").exists()
    assert Bundle.open(bundle).adapters.keys() == {"far"}


@pytest.mark.parametrize("file", ["manifest.json", "model.onnx", "reference.safetensors", "tokenizer.json"])
def test_links_in_bundles(bundle: Path, tmp_path: Path, file: str) -> None:
    (bundle / file).rename(tmp_path / file)
    link(bundle / file, tmp_path / file)
    with pytest.raises(InputError, match="link that leads out of"):
        Bundle.open(bundle, check_files=False)
    (bundle / file).unlink()
    (tmp_path / file).rename(bundle / "inside")
    link(bundle / file, Path("inside"))
    assert Bundle.open(bundle)


def test_adding_through_a_linked_directory(embedded: Path, tmp_path: Path) -> None:
    shutil.copytree(embedded, tmp_path / "made")
    bundle, elsewhere = tmp_path / "made" / "vectors", tmp_path / "elsewhere"
    names = list(Bundle.open(bundle).adapters)
    for name in names:
        assert run("adapter", "remove", bundle, name).code == 0
    shutil.rmtree(bundle / "adapters")
    elsewhere.mkdir()
    link(bundle / "adapters", elsewhere)
    package = tmp_path / "made" / names[0]
    fails(3, "link that leads out of", "adapter", "add", bundle, f"x={package}")
    assert not list(elsewhere.iterdir())
    (bundle / "adapters").unlink()
    assert run("adapter", "add", bundle, f"x={package}").code == 0


@each_trick
def test_checkpoint_indexes(tmp_path: Path, victim: Path, trick: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    write_json(base / "config.json", {})
    write_json(base / INDEX_NAME, {"weight_map": {"w": TRICKS[trick](base, victim)}})
    with pytest.raises(InputError, match=OUTSIDE):
        Checkpoint(base)


@each_trick
@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph"])
def test_external_weights_of_graphs(tmp_path: Path, victim: Path, trick: str, place: str) -> None:
    directory = tmp_path / "graph"
    directory.mkdir()
    save_graph(directory / "m.onnx", TRICKS[trick](directory, victim), place)
    for read in (load_model, create_session):
        with pytest.raises(InputError, match=OUTSIDE):
            read(directory / "m.onnx")


def test_weights_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    words = word_bundle(tmp_path / "words")
    onnx.save(
        onnx.load(words / "model.onnx"),
        words / "model.onnx",
        save_as_external_data=True,
        location="w",
        size_threshold=64,
    )
    manifest = json.loads((words / "manifest.json").read_text())
    listed = {name: sha256_file(words / name) for name in ("model.onnx", "w")}
    write_json(words / "manifest.json", {**manifest, "model": {**manifest["model"], "files": listed}})
    assert run("predict", words, "w1").code == 0
    del listed["w"]
    write_json(words / "manifest.json", {**manifest, "model": {**manifest["model"], "files": listed}})
    fails(3, "keeps its weights in w, which manifest.json does not list", "predict", words, "w1")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", "a\n", "\x1b[2J", "a" * 101, "[/x]"])
def test_names_of_adapters_in_manifests_are_those_that_can_be_given(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    adapters = manifest["adapters"]
    write_json(bundle / "manifest.json", {**manifest, "adapters": {name: adapters["near"], "far": adapters["far"]}})
    fails(3, "cannot name an adapter", "adapter", "list", bundle)
    fails(3, "cannot name an adapter", "serve", bundle, "--port", "0")


def save_graph(path: Path, location: str, place: str) -> None:
    """Save a graph with a tensor of 8 numbers in the file ``location``."""
    tensor = numpy_helper.from_array(np.ones(8, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(name, 1, [8]) for name in "xy")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if place == "initializer":
        graph = helper.make_graph([add], "g", [x], [y], [tensor])
    else:
        constant = helper.make_node("Constant", [], ["w"], value=tensor)
        graph = helper.make_graph([constant, add], "g", [x], [y])
    if place == "subgraph":
        branch = helper.make_graph([constant, helper.make_node("Add", ["x", "w"], ["z"])], "b", [], [helper.make_tensor_value_info("z", 1, [8])])  # fmt: skip
        choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([choice], "g", [x, helper.make_tensor_value_info("c", TensorProto.BOOL, [])], [y])
    onnx.save_model(helper.make_model(graph), path)


@each_trick
def test_modules_of_sentence_encoders(tmp_path: Path, victim: Path, trick: str) -> None:
    directory = tmp_path / "base"
    directory.mkdir()
    name = TRICKS[trick](directory, victim)
    modules = [{"type": "m.Transformer", "path": ""}, {"type": "m.Pooling", "path": name or ".."}]
    write_json(directory / "modules.json", modules)
    with pytest.raises(InputError, match=OUTSIDE):
        read_pooling(directory)


@each_trick
@pytest.mark.parametrize("key", ["fast_tokenizer_files", "vocab_file"])
def test_tokenizer_configurations(tmp_path: Path, victim: Path, key: str, trick: str) -> None:
    directory = tmp_path / "base"
    tokenizer().save_pretrained(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    name = TRICKS[trick](directory, victim)
    write_json(directory / "tokenizer_config.json", {**config, key: [name] if key.endswith("s") else name})
    harmless = key == "vocab_file" and trick in ("nul", "drive", "backslash", "empty", "circle", "inner parent")
    if harmless:  # there is no such file; published configurations name files of other machines
        assert load_tokenizer(directory)("w1").input_ids
    else:
        with pytest.raises(InputError, match=OUTSIDE):
            load_tokenizer(directory)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "rmlora.json", "README.md"])
def test_links_in_adapter_packages(tmp_path: Path, file: str) -> None:
    package = save_adapter(adapt(build("bert"), lora_config("bert")), tmp_path / "adapter")
    (tmp_path / "away").write_bytes((package / file).read_bytes() if (package / file).exists() else b"{}")
    (package / file).unlink(missing_ok=True)
    link(package / file, tmp_path / "away")
    with pytest.raises(InputError, match=f"{file} is a link that leads out of its directory: put a copy"):
        load_package(package)
    (package / file).unlink()
    (tmp_path / "away").rename(package / "inside")
    link(package / file, Path("inside"))
    assert load_package(package).modules


def test_links_among_files_that_are_copied(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "merged").mkdir()
    link(tmp_path / "base" / "README.md", victim)
    with pytest.raises(InputError, match="README.md is a link that leads out"):
        copy_side_files(tmp_path / "base", tmp_path / "merged")
    assert not list((tmp_path / "merged").iterdir())


def hub_snapshot(directory: Path, files: Path) -> Path:
    """Lay ``files`` out as the hub's cache does: links to ``blobs``."""
    snapshot, blobs = directory / "models--x" / "snapshots" / "0123", directory / "models--x" / "blobs"
    for path in (item for item in files.rglob("*") if item.is_file()):
        blob, place = blobs / path.relative_to(files).as_posix().replace("/", "-"), snapshot / path.relative_to(files)
        for folder in (blobs, place.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        place.symlink_to(Path(*[".."] * (len(place.relative_to(directory).parts) - 2), "blobs", blob.name))
    return snapshot


def test_snapshots_of_the_hub_are_followed(bundle: Path, tmp_path: Path) -> None:
    package = save_adapter(adapt(build("bert"), lora_config("bert")), tmp_path / "adapter")
    assert load_package(hub_snapshot(tmp_path / "a", package)).modules
    assert Bundle.open(hub_snapshot(tmp_path / "b", bundle)).adapters
    build("bert").save_pretrained(tmp_path / "base", max_shard_size="10KB")
    assert len(Checkpoint(hub_snapshot(tmp_path / "c", tmp_path / "base")).shards) > 1


def test_a_forged_snapshot_is_not_followed(tmp_path: Path, victim: Path) -> None:
    snapshot = tmp_path / "x" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    link(tmp_path / "x" / "blobs", victim.parent)
    link(snapshot / "file", Path("../../blobs") / victim.name)
    with pytest.raises(InputError, match="link that leads out of"):
        confine(snapshot, "file", where="index.json")


def test_paths_that_the_user_gives_may_be_links(bundle: Path, tmp_path: Path) -> None:
    link(tmp_path / "current", bundle)
    assert Bundle.open(tmp_path / "current").adapters
    assert run("adapter", "remove", tmp_path / "current", "near").code == 0
    assert list(Bundle.open(bundle).adapters) == ["far"]


@pytest.mark.parametrize("name", [None, 3, ["a"], {}])
def test_a_name_is_a_text(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InputError, match="which is not a path inside"):
        confine(tmp_path, name, where="index.json")
