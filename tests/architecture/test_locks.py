"""The locked requirements fulfil pyproject.toml, and every file they allow is named by its hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {
    "setup": ["train", "export", "serve", "ray", "cpu", "dev"],
    "serve-cpu": ["serve", "ray", "cpu"],
    "serve-gpu": ["serve", "ray", "gpu"],
    "docs": ["docs"],
    "release": ["release"],
}


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Return the version and the number of hashes of every package in a lock."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+)((?:.*\\\n?)?(?:\s+--hash=sha256:[0-9a-f]{64}(?: \\)?\n?)*)", text, re.M)
    return {canonicalize_name(package): (version, rest.count("--hash=")) for package, version, rest in entries}


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_fulfils_what_the_project_asks_for(name: str) -> None:
    versions = locked(name)
    wanted = PROJECT["dependencies"] + [one for extra in LOCKS[name] for one in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, wanted):
        if requirement.name != "torch":
            version, _ = versions[canonicalize_name(requirement.name)]
            assert version in requirement.specifier, f"{requirement}: {version} is locked; run  make lock"
    assert "setuptools" in versions  # what builds the project, which is installed without an isolated build


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_hashes_and_torch_is_left_to_the_machine(name: str) -> None:
    versions = locked(name)
    assert len(versions) > 20
    assert not [package for package in versions if package == "torch" or package.startswith(("nvidia-", "cuda-"))]
    assert all(hashes for _, hashes in versions.values()), [key for key, (_, hashes) in versions.items() if not hashes]


def test_the_locks_agree_on_every_version() -> None:
    seen: dict[str, str] = {}
    for name in LOCKS:
        for package, (version, _) in locked(name).items():
            assert seen.setdefault(package, version) == version, f"{package} of {name}.txt"


def test_the_files_are_the_ones_the_makefile_writes() -> None:
    written = re.findall(r"-o requirements/([\w-]+)\.txt", (ROOT / "Makefile").read_text())
    assert sorted(written) == sorted(LOCKS)
    present = {path.stem for path in (ROOT / "requirements").glob("*.txt")}
    assert present == {*LOCKS, "demo-assets", "torch"}
