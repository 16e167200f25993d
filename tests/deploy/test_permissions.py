"""Every artifact has the permissions of the umask, other users can open it, and what may not be read is called that."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import InputError
from rmlora.images import open_image
from rmlora.package import load_package
from rmlora.processors import load_tokenizer
from rmlora.tasks import get_task
from rmlora.training.data import Columns, load_split
from rmlora_converters.graph.files.model_file import load_model
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter
from rmlora_deploy import load
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.runtime.providers import create_session
from tests.helpers.bundles import make_sources
from tests.helpers.cli import fails, run, text_base, text_data
from tests.helpers.exports import export
from tests.helpers.rarely import rarely
from tests.rmlora.training.short_run import words_for

NOBODY = 65534
QUICK = ["--engine", "onnx", "--rounds", "1", "--seconds", "0.05", "--batch", "1", "--length", "8", "--threads", "1"]


@contextmanager
def another_user() -> Iterator[None]:
    """Act as a user without rights, if this is the superuser, who may read everything. Others lack rights already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that all users can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(params=[rarely(0o022, id="022"), pytest.param(0o077, id="077")])
def made(request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, int]:
    """One of every artifact, made under a umask; inputs are in ``place / "in"``, artifacts in ``place / "out"``."""
    monkeypatch.setenv("RMLORA_CACHE", str(place / "out" / "cache"))
    inputs, out = place / "in", place / "out"
    inputs.mkdir()
    base, data = text_base(inputs / "encoder"), text_data(inputs / "train.jsonl")
    graph = export("bert", inputs / "model.onnx", optimized=False)
    before = os.umask(request.param)
    try:
        out.mkdir()
        for words in (
            words_for(base, data, out / "adapter", "--epochs", "1"),
            ["compress", out / "adapter", "--rank", "2", "-o", out / "small"],
            ["mix", out / "adapter", out / "small", "--head-from", out / "adapter", "-o", out / "mixed"],
            ["merge", base, out / "adapter", "-o", out / "merged"],
            ["export", base, "--adapter", out / "adapter", "-o", out / "bundle"],
            ["export", base, "--mode", "branches", "-a", out / "adapter", "-o", out / "branches"],
            ["merge", *make_sources("bert", inputs), "--onnx", graph, "-o", out / "onnx"],
            ["adapter", "add", out / "branches", f"more={out / 'mixed'}"],
            ["verify", out / "branches"],
            ["verify", out / "bundle"],
            ["bench", out / "bundle", *QUICK, "--output", out / "bench.json", "--plot", out / "bench.png"],
            ["inspect", out / "adapter", "--plot", out / "spectrum.svg"],
        ):
            done = run(*words)
            assert done.code == 0, (words, done.stderr)
    finally:
        os.umask(before)
    return out, request.param


def test_every_artifact_follows_the_umask_and_opens_for_others(made: tuple[Path, int]) -> None:
    out, mask = made
    paths = list(out.rglob("*"))
    assert len([path for path in paths if path.suffix == ".safetensors"]) >= 8
    wrong = {
        str(path.relative_to(out)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in paths
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~mask
    }
    assert not wrong
    assert not [path for path in paths if "partial" in path.name or path.name.startswith(".")]
    labels = [answer.label for answer in load(out / "bundle").predict(["w1 w7"])]
    with another_user():
        if mask == 0o022:
            assert [answer.label for answer in load(out / "bundle").predict(["w1 w7"])] == labels
            assert Bundle.open(out / "branches").adapters.keys() == {"adapter", "more"}
            assert load_package(out / "mixed").modules and Checkpoint(out / "merged").tensors
        elif os.geteuid() == NOBODY:
            with pytest.raises(InputError, match="Permission denied"):
                load(out / "bundle")


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "adapter config": ("adapter/adapter_config.json", lambda root: load_package(root / "adapter")),
    "adapter tensors": ("adapter/adapter_model.safetensors", lambda root: load_package(root / "adapter")),
    "adapter metadata": ("adapter/rmlora.json", lambda root: load_package(root / "adapter")),
    "adapter directory": ("adapter", lambda root: load_package(root / "adapter")),
    "base weights": ("base/model.safetensors", lambda root: resolve_base(root / "base")),
    "base config": ("base/config.json", lambda root: Checkpoint(root / "base").config),
    "base directory": ("base", lambda root: resolve_base(root / "base")),
    "tokenizer": ("base/tokenizer.json", lambda root: load_tokenizer(root / "base")),
    "tokenizer config": ("base/tokenizer_config.json", lambda root: load_tokenizer(root / "base")),
    "graph": ("bundle/model.onnx", lambda root: load_model(root / "bundle" / "model.onnx")),
    "graph of a session": ("bundle/model.onnx", lambda root: create_session(root / "bundle" / "model.onnx")),
    "manifest": ("bundle/manifest.json", lambda root: Bundle.open(root / "bundle")),
    "bundle's tokenizer": ("bundle/tokenizer.json", lambda root: Bundle.open(root / "bundle")),
    "bundle directory": ("bundle", lambda root: Bundle.open(root / "bundle")),
    "reference": ("bundle/reference.safetensors", lambda root: load_reference(root / "bundle" / "reference.safetensors")),
    "arrays of an adapter": (
        "bundle/adapters/a.onnx_adapter",
        lambda root: read_onnx_adapter(root / "bundle" / "adapters" / "a.onnx_adapter"),
    ),
    "training data": (
        "train.jsonl",
        lambda root: load_split(get_task("text-classification"), str(root / "train.jsonl"), Columns()),
    ),
    "image": ("image.png", lambda root: open_image(root / "image.png")),
}  # fmt: skip
"""What is read: the file, and a function that reads it."""


@pytest.fixture(scope="module")
def readable() -> Iterator[Path]:
    """One of everything that is read."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    base, data = text_base(root / "base"), text_data(root / "train.jsonl")
    assert run(*words_for(base, data, root / "adapter", "--epochs", "1")).code == 0
    done = run("export", base, "--mode", "branches", "-a", f"a={root / 'adapter'}", "-o", root / "bundle")
    assert done.code == 0, done.stderr
    for path in (base, *base.iterdir()):
        path.chmod(0o755)
    Image.new("RGB", (4, 4)).save(root / "image.png")
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize("what", READERS)
def test_a_file_that_may_not_be_read_is_called_that(readable: Path, what: str) -> None:
    name, read = READERS[what]
    path = readable / name
    mode = stat.S_IMODE(path.stat().st_mode)
    read(readable)  # also imports what the reader needs, perhaps from where others may not read
    path.chmod(0)
    try:
        with (
            another_user(),
            pytest.raises(InputError, match=f"Permission denied: this user may not read .*{path.name}"),
        ):
            read(readable)
    finally:
        path.chmod(mode)


def test_the_command_line_says_so_too(readable: Path) -> None:
    weights = readable / "base" / "model.safetensors"
    weights.chmod(0)
    try:
        with another_user():
            fails(3, "Permission denied", "merge", readable / "base", readable / "adapter", "-o", readable / "merged")
    finally:
        weights.chmod(0o644)
    assert not (readable / "merged").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "{root}/bundle", "--file", "{root}/text"],
        ["train", "--output", "{root}/trained", "--config", "{root}/text"],
        ["loadtest", "http://127.0.0.1:1", "--texts", "{root}/text"],
    ],
    ids=lambda words: words[0],
)
def test_files_given_on_the_command_line(readable: Path, words: list[str]) -> None:
    text = readable / "text"
    text.write_text("epochs: 1")
    text.chmod(0)
    filled = [word.format(root=readable) for word in words]
    run(*filled[:-1], readable / "none")  # imports what may be where others may not read
    import netrc  # noqa: F401 - httpx, for a client

    with another_user():
        fails(3, f"Permission denied: this user may not read {text}", *filled)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only the superuser can be several users")
def test_what_a_killed_run_of_another_user_left_is_named(readable: Path) -> None:
    readable.chmod(0o777)
    words = ("compress", readable / "adapter", "--rank", "1", "-o", readable / "out")
    abandoned = readable / ".out.partial-0123456789ab"
    (abandoned / "out").mkdir(parents=True)
    with another_user():
        assert run(*words).code == 0, "an unfinished result stops nobody"
    shutil.move(readable / "out", abandoned / "out.previous")
    with another_user():
        fails(
            8, f"{abandoned / 'out.previous'} is the old out, which a killed run of another user has set aside", *words
        )
    assert run(*words, "--overwrite").code == 0
    assert not list(readable.glob(".out.partial-*"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only the superuser can be several users")
def test_a_change_that_cannot_be_completed_is_not_begun(readable: Path) -> None:
    bundle = readable / "bundle"
    before = (bundle / "manifest.json").read_bytes()
    bundle.chmod(0o777)  # but its directory "adapters" is not
    with another_user():
        for words in (("remove", bundle, "a"), ("add", bundle, f"b={readable / 'adapter'}")):
            fails(8, f"{bundle / 'adapters'} cannot be changed (Permission denied)", "adapter", *words)
    assert (bundle / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in bundle.glob(".*")) == []


def test_a_manifest_holds_no_paths_of_the_machine(readable: Path) -> None:
    text = (readable / "bundle" / "manifest.json").read_text()
    assert str(readable) not in text and str(readable.parent) + "/" not in text
    manifest = json.loads(text)
    assert manifest["base"]["source"] == "base" and manifest["adapters"]["a"]["source"] == "adapter"


def test_merges_hold_no_paths_of_the_machine(readable: Path, tmp_path: Path) -> None:
    assert run("merge", readable / "base", readable / "adapter", "-o", tmp_path / "merged").code == 0
    for path in (tmp_path / "merged").iterdir():
        assert str(readable).encode() not in path.read_bytes(), path
