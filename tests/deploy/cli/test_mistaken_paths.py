"""A directory of another kind than a command takes, or one that cannot be written, is called that before any work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rmlora.errors import OutputError, ReadOnlyError
from rmlora.storage import atomic_directory, check_makeable
from tests.deploy.test_permissions import another_user, place
from tests.helpers.bundles import make_sources
from tests.helpers.cli import fails, text_base, text_data

__all__ = ["place"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter."""
    return make_sources("bert", tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize(
    "words", [["predict", "{}", "w0"], ["verify", "{}"], ["serve", "{}"], ["adapter", "list", "{}"]]
)
def test_an_adapter_or_a_model_in_place_of_a_bundle(sources: tuple[Path, Path], words: list[str]) -> None:
    base, adapter = sources
    for path, message in (
        (
            adapter,
            f"{adapter} is an adapter, not a bundle: export it first with  rmlora-deploy export BASE --adapter {adapter}",
        ),
        (base, f"{base} is a model, not a bundle: export it first with  rmlora-deploy export {base} --adapter ADAPTER"),
    ):
        fails(3, message, *(word.format(path) for word in words))


def test_a_command_to_copy_is_quoted(sources: tuple[Path, Path], tmp_path: Path) -> None:
    adapter, base = tmp_path / "my adapter", tmp_path / "my base"
    shutil.copytree(sources[1], adapter)
    shutil.copytree(sources[0], base)
    fails(3, f"rmlora-deploy export BASE --adapter '{adapter}'.", "predict", adapter, "w0")
    fails(3, f"rmlora-deploy export '{base}' --adapter ADAPTER.", "predict", base, "w0")


def test_base_and_adapter_swapped(sources: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = sources
    fails(3, f"{base} is a model, not an adapter: give the base first", "merge", adapter, base, "-o", tmp_path / "out")
    message = f"{adapter} is an adapter, not a model: give the base that it was trained on."
    fails(3, message, "export", adapter, "--adapter", base, "-o", tmp_path / "out")
    fails(3, f"{base} is a model: give an adapter trained on it", "inspect", base)
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_nearly_right(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = sources
    monkeypatch.chdir(base.parent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ("merge", adapter, "-o", tmp_path / "out")
    for given, message in (
        ("bse", "'bse' is not a local directory (the nearest is base) and could not be fetched"),
        ("./bse", "Base model not found: ./bse does not exist; the nearest is base."),
        (str(base.parent / "Bases"), f"does not exist; the nearest is {base}."),
        ("tiny.guf", "'tiny.guf' is not a local directory (the nearest is tiny.gguf) and"),
        ("nothing-like-it", "'nothing-like-it' is not a local directory and could not be fetched"),
    ):
        (base.parent / "tiny.gguf").touch()
        fails(3, message, words[0], given, *words[1:])
    fails(3, "adaptor is not a directory; the nearest is adapter.", "merge", base, "adaptor", "-o", tmp_path / "out")
    fails(3, "Bundle not found: bsae is not a directory; the nearest is base.", "predict", "bsae", "w0")


def test_training_does_not_begin_where_it_cannot_write(place: Path) -> None:
    base, data = text_base(place / "base"), text_data(place / "train.jsonl")
    (place / "open").mkdir(mode=0o777)
    (place / "open").chmod(0o777)
    words = ("train", "--base", base, "--train", data)
    advice = "cannot be written (Permission denied): choose a directory you may write to."
    with another_user():
        fails(8, f"{place / 'x'} {advice}", *words, "-o", place / "x")
        fails(8, f"{place / 'x' / 'y'} {advice}", *words, "-o", place / "x" / "y")
        fails(8, f"{place / 'runs'} {advice}", *words, "-o", place / "open" / "x", "--run-dir", place / "runs")
    fails(8, "it must be a directory", *words, "-o", place / "x", "--run-dir", data)
    assert sorted(path.name for path in place.iterdir()) == ["base", "open", "train.jsonl"]
    assert list((place / "open").iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc, where nothing can be made")
@pytest.mark.parametrize("target", ["/proc/out", "/proc/a/b"])
def test_where_nothing_can_be_made_the_message_names_the_path_that_was_given(target: str) -> None:
    with pytest.raises(OutputError, match=f"^{target} cannot be written .*: choose a directory you may write to"):
        check_makeable(Path(target))
    with pytest.raises(OutputError, match=f"^{target} cannot be written"), atomic_directory(Path(target)):
        raise AssertionError("the work has begun")


def test_a_directory_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_makeable(tmp_path / "a" / "b")
    check_makeable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="must be a directory"):
        check_makeable(tmp_path / "file")
    with pytest.raises(OutputError, match="Not a directory"):
        check_makeable(tmp_path / "file" / "x")
    with pytest.raises(OutputError, match="too long"):
        check_makeable(tmp_path / ("x" * 300) / "y")


def test_an_output_in_a_directory_that_may_not_be_looked_into(place: Path) -> None:
    (place / "closed").mkdir(mode=0o700)
    with another_user(), pytest.raises(ReadOnlyError, match="x cannot be written"):
        check_makeable(place / "closed" / "x", replaced=True)
