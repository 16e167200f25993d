"""The wheel installs the three packages with their data files, and no other name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import PurePosixPath

import pytest

from tests.helpers.cli import PACKAGES, ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", *(path.relative_to(ROOT).parts[0] for path in PACKAGES.values()))
"""What a wheel is built from."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """Build a wheel from a copy of the tree, offline, with the setuptools of this environment.

    The tests and benchmarks are copied too: they must stay out of the wheel by themselves.
    """
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*SOURCES, "tests", "benchmarks"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy(source, tree)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(out),
    ]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return zipfile.Path(built)


def names_in(wheel: zipfile.Path) -> set[str]:
    return {name for name in wheel.root.namelist() if not name.endswith("/")}


def test_only_our_packages_are_installed(wheel: zipfile.Path) -> None:
    top = {PurePosixPath(name).parts[0] for name in names_in(wheel)}
    assert len(top) == len(PACKAGES) + 1
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert wheel.joinpath(next(iter(top - set(PACKAGES))), "top_level.txt").read_text().split() == sorted(PACKAGES)


def test_every_file_of_the_packages_is_in_it(wheel: zipfile.Path) -> None:
    """Code, ``py.typed`` and the static files of the page."""
    expected = {
        path.relative_to(folder.parent).as_posix()
        for folder in PACKAGES.values()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    assert "rmlora_deploy/serving/static/index.html" in expected
    assert {name for name in names_in(wheel) if ".dist-info/" not in name} == expected


def test_the_command_is_installed(wheel: zipfile.Path) -> None:
    (scripts,) = (name for name in names_in(wheel) if name.endswith(".dist-info/entry_points.txt"))
    assert "rmlora-deploy = rmlora_deploy.__main__:main" in wheel.joinpath(scripts).read_text()
