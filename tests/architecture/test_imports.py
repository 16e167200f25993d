"""Imports point one way, deploy → converters → rmlora, and every module says what it offers."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.helpers.cli import ROOT

LAYERS = ("rmlora", "converters", "deploy")
"""Each may import itself and what stands before it."""

FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Return the top-level packages a file imports anywhere: lazily and for type checking too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    own = LAYERS.index(path.relative_to(ROOT).parts[0])
    above = {*LAYERS[own + 1 :], "tests", "benchmarks"}
    assert not imported(path) & above


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


def test_the_package_offers_what_it_lists() -> None:
    import rmlora

    for name in rmlora.__all__:
        assert getattr(rmlora, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        rmlora.no_such_name  # noqa: B018 - the access is the test
