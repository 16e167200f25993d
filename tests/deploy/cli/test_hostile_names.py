"""Names, labels and paths are printed as they are: not as rich's markup, not as codes for the terminal."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rmlora.errors import InputError
from rmlora_deploy.bundles.bundle import MANIFEST_FILE, Bundle
from tests.helpers.bundles import make_bundle, make_sources
from tests.helpers.cli import fails, run

HOSTILE = ["[/x]", "[bold]b", "\x1b[2Jc"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sources("bert", tmp_path_factory.mktemp("[red]") / "[/y]")[1]


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_an_adapter_with_labels_like_markup_is_inspected(adapter: Path) -> None:
    change(adapter / "rmlora.json", labels=HOSTILE, base_model="[/z]", metrics={"test": {"[/m]": 0.5, "other": "text"}})
    done = run("inspect", adapter)
    assert done.code == 0, done.stderr
    assert "[/x], [bold]b, \\x1b[2Jc" in done.stdout
    assert "[/z]" in done.stdout and "[/m] 0.5000" in done.stdout
    assert "[/y]" in done.stdout.replace("\n", "")
    assert "\x1b" not in done.stdout
    assert json.loads(run("inspect", adapter, "--json").stdout)["labels"] == HOSTILE


def test_results_in_folders_with_brackets_are_reported(adapter: Path, tmp_path: Path) -> None:
    for words in (("compress", adapter, "--rank", "1"), ("mix", adapter, adapter, "--weights", "1,1")):
        done = run(*words, "-o", tmp_path / f"[/{words[0]}]")
        assert done.code == 0, done.stderr
        assert f"[/{words[0]}]" in done.stdout.replace("\n", "")


def test_a_bundle_with_labels_like_markup_predicts(tmp_path: Path) -> None:
    bundle = make_bundle("bert", tmp_path)
    change(bundle.path / MANIFEST_FILE, labels=[f"[/x]\x1b[2J{label}" for label in bundle.manifest.labels])
    for words in (("predict", bundle.path, "[bold]w1[/w2]"), ("inspect", bundle.path)):
        done = run(*words)
        assert done.code == 0, done.stderr
        assert "[/x]\\x1b[2J" in done.stdout and "\x1b" not in done.stdout


def test_settings_of_another_type_are_named(adapter: Path) -> None:
    content = (adapter / "rmlora.json").read_text()
    change(adapter / "rmlora.json", rmlora={"rank": "many"})
    fails(3, "has a wrong 'rmlora.rank'", "inspect", adapter)
    (adapter / "rmlora.json").write_text(content)


def test_inputs_come_from_pipes_of_the_shell(tmp_path: Path) -> None:
    """As ``predict --file <(command)``; a pipe that nobody writes to is never waited for."""
    bundle = make_bundle("bert", tmp_path)
    read, write = os.pipe()
    threading.Thread(target=lambda: (os.write(write, b"w1 w2\nw3\n"), os.close(write))).start()
    done = run("predict", bundle.path, "--file", f"/dev/fd/{read}", "--json")
    os.close(read)
    assert done.code == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2
    os.mkfifo(tmp_path / "pipe")
    fails(3, "a pipe or a device", "predict", bundle.path, "--file", tmp_path / "pipe")


def test_files_of_adapters_need_hashes(tmp_path: Path) -> None:
    bundle = make_bundle("bert", tmp_path, mode="branches")
    value = json.loads((bundle.path / MANIFEST_FILE).read_text())
    entry = value["adapters"]["adapter"]
    entry["files"] = {name: digest for name, digest in entry["files"].items() if name != entry["file"]}
    change(bundle.path / MANIFEST_FILE, adapters=value["adapters"])
    with pytest.raises(InputError, match="without its hash: the manifest is damaged"):
        Bundle.open(bundle.path, check_files=False)
