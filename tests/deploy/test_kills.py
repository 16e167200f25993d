"""Commands that are killed, interrupted or run out of disk leave a valid result, and the next one cleans up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rmlora.errors import OutputError
from rmlora.storage import write_json
from rmlora_converters.graph.files.onnx_adapter import write_onnx_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.changes import PENDING_FILE
from tests.helpers.cli import ROOT, environment, fails, run

DIE = """
import os, sys
from pathlib import Path
from rmlora_deploy.bundles import adapters
from rmlora_deploy.bundles.bundle import Bundle
bundle, what, name, package, function, when = sys.argv[1:]
owner = Bundle if function == "save_manifest" else adapters
real = getattr(owner, function)
def die(*words):
    if when == "after":
        real(*words)
    os.kill(os.getpid(), 9)
setattr(owner, function, die)
opened = Bundle.open(bundle)
adapters.add_adapter(opened, name, Path(package)) if what == "add" else adapters.remove_adapter(opened, name)
"""
"""Adds or removes an adapter, and is killed before or after a function does its work."""


@pytest.fixture
def bundle(embedded: Path, tmp_path: Path) -> Path:
    shutil.copytree(embedded, tmp_path / "made")
    return tmp_path / "made" / "vectors"


def names(directory: Path) -> set[str]:
    """Return the names of all files and directories in a directory."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("what", "function", "when", "listed"),
    [
        ("add", "write_onnx_adapter", "before", False),
        ("add", "write_onnx_adapter", "after", False),
        ("add", "save_manifest", "after", True),
        ("remove", "save_manifest", "before", True),
        ("remove", "save_manifest", "after", False),
    ],
)
def test_the_next_command_removes_what_a_killed_one_left(
    bundle: Path, what: str, function: str, when: str, listed: bool
) -> None:
    other, name = Bundle.open(bundle).adapters
    if what == "add":
        assert run("adapter", "remove", bundle, name).code == 0
    words = [str(bundle), what, name, str(bundle.parent / name), function, when]
    done = subprocess.run([sys.executable, "-c", DIE, *words], env=environment(), capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert (bundle / PENDING_FILE).exists()
    assert (name in Bundle.open(bundle).adapters) == listed
    assert run("adapter", "remove", bundle, other).code == 0
    opened = Bundle.open(bundle)
    expected = set(opened.adapters[name].files) if listed else set()
    assert {file for file in names(bundle) if file.startswith("adapters/")} == expected
    assert names(bundle) == {"README.md", "manifest.json", "adapters", *opened.files}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, where mounting is allowed."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    yield mount if mounted else Path("/dev/full")
    if mounted:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_under_every_writer(small_disk: Path, bundle: Path, tmp_path: Path) -> None:
    if small_disk == Path("/dev/full"):
        with pytest.raises(OutputError, match="is a device"):
            write_json(small_disk, {})
        return
    arrays = {"a": np.zeros((1, 100, 1000), np.float32)}
    with pytest.raises(OutputError, match="is full: free some space"):
        write_onnx_adapter(small_disk / "x.onnx_adapter", arrays)
    with pytest.raises(OutputError, match="is full: free some space"):
        write_json(small_disk / "x.json", ["x" * 100_000])
    copied = small_disk / "b"
    fails(8, "is full", "export", bundle.parent / "base", "--mode", "branches", "-a", bundle.parent / "near", "-o", copied, "--no-verify")  # fmt: skip
    assert not list(small_disk.iterdir())


def test_ctrl_c_leaves_nothing_behind(bundle: Path, tmp_path: Path) -> None:
    """The signal arrives while the result is written."""
    program = (
        "import os, signal, sys; import rmlora.package as package; real = package.write_tensors\n"
        "def stop(*words, **more):\n"
        "    real(*words, **more); os.kill(os.getpid(), signal.SIGINT)\n"
        "package.write_tensors = stop\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell runs in the background
        "from rmlora_deploy.cli import main; main()"
    )
    words = ["compress", str(bundle.parent / "near"), "--rank", "1", "-o", str(tmp_path / "out" / "small")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 130 and done.stderr.strip().startswith("Error: Interrupted")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.rare
def test_a_short_kill_campaign() -> None:
    """Five commands, a few of them as process 1; ``python -m benchmarks.kills`` is the long one."""
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "5", "--seed", "3", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env={**environment(), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["kills"] == 5 and not result["problems"]
    assert result["process_1"] or os.geteuid() != 0
