"""Imports point one way, between the packages and between the rooms of each, and every module says what it offers."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.helpers.cli import PACKAGES, ROOT

LAYERS = tuple(PACKAGES)
"""Each may import itself and what stands before it."""

ROOMS = {
    "rmlora_converters.graph": (("files",), ("locate",), ("contract",), ("passes",)),
    "rmlora_deploy": (
        ("runtime",),
        ("bundles",),
        ("inference",),
        ("verification", "inspection"),
        ("exporter", "bench", "serving", "loadtest"),
        ("api",),
        ("cli",),
    ),
}
"""Rooms from the lowest to the highest: each may import lower ones, and none of its neighbors."""

FILES = [path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))]


def module_name(path: Path) -> str:
    """Return the name a file is imported by."""
    (top,) = (folder for folder in PACKAGES.values() if path.is_relative_to(folder))
    return ".".join(path.relative_to(top.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Return the modules a file imports anywhere: lazily and for type checking too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room_of(name: str, package: str) -> str | None:
    """Return the room of ``package`` that a module or a name in one belongs to."""
    return name.removeprefix(f"{package}.").partition(".")[0] if name.startswith(f"{package}.") else None


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    own = LAYERS.index(module_name(path).partition(".")[0])
    above = {*LAYERS[own + 1 :], "tests", "benchmarks"}
    assert not {name.partition(".")[0] for name in imported(path)} & above


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_rooms_import_only_lower_rooms(path: Path) -> None:
    for package, levels in ROOMS.items():
        rank = {room: level for level, rooms in enumerate(levels) for room in rooms}
        own = room_of(module_name(path), package)
        if own is None or own == "__main__":
            continue
        assert own in rank, f"{path}: say in ROOMS where '{own}' stands"
        for name in imported(path):
            other = room_of(name, package)
            if other in rank and other != own:
                assert rank[other] < rank[own], f"{path}: '{own}' may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_module_documents_itself_and_lists_what_it_offers(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} has no docstring"
    public = [
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
    ]
    if not public:
        return
    module = importlib.import_module(module_name(path))
    assert module.__all__, f"{path} has no __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), f"{path}: __all__ names '{name}', which is not there"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_name_stands_once_in_a_package(package: str) -> None:
    names = [path.name for path in PACKAGES[package].rglob("*.py") if path.name != "__init__.py"]
    assert sorted(set(names)) == sorted(names)


def test_no_file_is_longer_than_400_lines() -> None:
    tests = (path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
    assert not [path for path in (*FILES, *tests) if len(path.read_text(encoding="utf-8").splitlines()) > 400]


def test_the_package_offers_what_it_lists() -> None:
    import rmlora

    for name in rmlora.__all__:
        assert getattr(rmlora, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        rmlora.no_such_name  # noqa: B018 - the access is the test
