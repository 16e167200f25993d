"""Forty seeded inputs for every reader: each is read, or refused in one sentence. ``python -m benchmarks.fuzz`` does more."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.fuzz.campaign import Campaign, Tally, shares
from benchmarks.fuzz.child import draw, restore, run_one
from benchmarks.fuzz.mutations import change_bytes, change_json
from benchmarks.fuzz.readers import READERS
from benchmarks.fuzz.reading import clean
from benchmarks.fuzz.seeds import make_seeds
from tests.helpers.cli import ROOT, environment

INPUTS = 40


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seeds(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("name", READERS)
def test_every_input_is_read_or_refused_in_a_sentence(
    name: str, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    reader = READERS[name]
    reader.prepare(seeds, tmp_path)
    for number in range(INPUTS):
        result = run_one(reader, tmp_path, seeds, draw(0, name, number))
        assert result["end"] in ("read", "refused"), f"{name}-{number}: {result}"
        if result["end"] == "refused":
            assert result["message"].strip() and "Traceback" not in result["message"]
        assert result["seconds"] < 10
        restore(tmp_path, seeds, result["file"])


def test_an_input_depends_on_seed_reader_and_number_alone() -> None:
    content = json.dumps({"a": [1, 2, {"b": "c"}], "d": 0.5}).encode()
    for change in (change_bytes, change_json):
        first = [change(draw(3, "manifest", number), content) for number in range(20)]
        assert first == [change(draw(3, "manifest", number), content) for number in range(20)]
        assert len(set(first)) > 10
        assert first != [change(draw(4, "manifest", number), content) for number in range(20)]


def test_shares_add_up() -> None:
    assert shares(100, [1, 1, 1]) == [33, 34, 33]
    assert sum(shares(50_000, [reader.weight for reader in READERS.values()])) == 50_000


CHILD = """
import os
from pathlib import Path
import benchmarks.fuzz.readers as readers
from benchmarks.fuzz import child
def bad(directory, file, rng):
    if b"changed" in (directory / file).read_bytes():
        with open(COUNT, "a") as count:
            count.write("x")
        number = os.stat(COUNT).st_size
        if number == 2:
            raise KeyError("a fault")
        if number == 3:
            os.kill(os.getpid(), 11)
readers.READERS["manifest"] = readers.FuzzedReader(
    "manifest", ("bundle",), ("bundle/manifest.json",), lambda rng, content: b"changed", bad
)
child.main()
"""
"""A child whose reader fails on the second input and ends the process on the third."""


def test_a_campaign_counts_exceptions_and_crashes_and_saves_their_inputs(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD.replace("COUNT", repr(str(tmp_path / "count"))))
    start = subprocess.Popen

    def instead(words: list[str], **options: object) -> subprocess.Popen[bytes]:
        return start([sys.executable, str(script), *words[3:]], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr("benchmarks.fuzz.campaign.subprocess.Popen", instead)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"] + f":{ROOT}")
    tally = Tally("manifest")
    Campaign("manifest", 0, seeds, tmp_path / "failures", tally).run(5, lambda tally: None)
    assert (tally.done, tally.read, tally.tracebacks, tally.crashes, tally.hangs) == (5, 3, 1, 1, 0)
    assert sorted(path.name for path in (tmp_path / "failures").iterdir()) == ["manifest-1", "manifest-2"]
    assert "KeyError" in (tmp_path / "failures" / "manifest-1" / "fault.txt").read_text()
    assert "SIGSEGV" in (tmp_path / "failures" / "manifest-2" / "fault.txt").read_text()


def test_help_teaches() -> None:
    words = [sys.executable, "-m", "benchmarks.fuzz", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=environment())
    assert done.returncode == 0
    for part in ("--inputs", "--seed", "--reader", "--json", "--minutes", "--repeat", *READERS):
        assert part in "".join(done.stdout.split())  # the names are wrapped at their dashes


def test_what_stands_where_a_file_is_expected_never_blocks(seeds: Path, tmp_path: Path) -> None:
    """Pipes, devices, directories and links in place of every file that any reader reads."""
    from benchmarks.fuzz.formats import KINDS, put_instead
    from rmlora.errors import RMLoRAError

    for name, reader in READERS.items():
        directory = tmp_path / name
        directory.mkdir()
        reader.prepare(seeds, directory)
        for file in reader.files[:2]:
            for kind in KINDS:
                put_instead(kind, directory / file, random.Random(0))
                with suppress(RMLoRAError):
                    reader.read(directory, file, random.Random(1))
                clean(directory)
                restore(directory, seeds, file)
