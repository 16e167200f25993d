"""What verification found is kept: reports of every kind, in bundles that may be written to, without machine paths."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.report import keep_reports
from tests.helpers.answers import TEXTS, make_adapter, make_base
from tests.helpers.cli import Finished, environment, run

TORCH, STORED = "PyTorch and PEFT", "stored outputs of PyTorch and PEFT"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("evidence")
    base = make_base(directory / "base", "one label")
    adapter = make_adapter(base, directory / "adapter")
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, ("red", "green", "blue", "red"), strict=True)]
    (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for mode in ("merged", "branches"):
        done = run("export", base, "-a", f"one={adapter}", "-o", directory / mode, "--mode", mode,
                   "--data", directory / "data.jsonl")  # fmt: skip
        assert done.code == 0, done.stderr
    return directory


@pytest.fixture(params=["merged", "branches"])
def bundle(request: pytest.FixtureRequest, made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / request.param, tmp_path / "bundle"))


def reports(bundle: Path) -> list[str]:
    return [report.against for report in Bundle.open(bundle).manifest.verifications]


def test_a_weaker_comparison_replaces_no_stronger_one(bundle: Path) -> None:
    for _ in range(5):
        assert run("verify", bundle, "--reference-only").code == 0
    manifest = Bundle.open(bundle).manifest
    assert reports(bundle) == [STORED] * 3 + [TORCH]
    first = manifest.verifications[-1]
    evaluation = first.evaluation or (first.adapters or {})["one"].evaluation
    assert evaluation is not None and evaluation.pytorch is not None
    assert all(report.date and report.tools and report.tools["onnxruntime"] for report in manifest.verifications)
    shown = run("inspect", bundle)
    assert shown.stdout.count("Earlier, ") == 3 and f"compared with {TORCH}" in " ".join(shown.stdout.split())
    assert keep_reports(manifest.verifications * 2)[:3] == manifest.verifications[:3]


def test_no_write_leaves_the_manifest_as_it_is(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    done = run("verify", bundle, "--reference-only", "--no-write")
    assert done.code == 0, done.stderr
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_removed_adapter_leaves_all_reports(bundle: Path) -> None:
    if Bundle.open(bundle).mode == "merged":
        return
    assert run("verify", bundle, "--reference-only").code == 0
    assert run("adapter", "remove", bundle, "one").code == 0
    assert [report.adapters for report in Bundle.open(bundle).manifest.verifications] == [{}, {}]


def test_a_bundle_that_may_not_be_written_to_is_verified(bundle: Path) -> None:
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    done = read_only(bundle, "verify", bundle, "--reference-only")
    assert done.code == 0, done.stderr
    assert "may not be written to: the report was not recorded" in " ".join(done.stdout.split())
    told = read_only(bundle, "verify", bundle, "--reference-only", "--json")
    assert told.code == 0 and json.loads(told.stdout)["passed"]
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def without_override() -> None:
    """Take away what lets root write to files that are read-only (Linux: CAP_DAC_OVERRIDE)."""
    if os.getuid() == 0:
        drop_from_bounding_set, dac_override = 24, 1
        assert ctypes.CDLL(None, use_errno=True).prctl(drop_from_bounding_set, dac_override, 0, 0, 0) == 0


def read_only(directory: Path, *words: str | Path) -> Finished:
    """Run a command that may read ``directory`` and write nothing in it."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rmlora_deploy", *map(str, words)],
            capture_output=True, text=True, check=False, env=environment(), preexec_fn=without_override,
        )  # fmt: skip
    finally:
        for path in (directory, *directory.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    return Finished(done.returncode, done.stdout, done.stderr)


def test_bundles_hold_no_paths_of_the_machine_they_were_made_on(bundle: Path, made: Path) -> None:
    for given in (("--base", made / "base", "--adapter", f"one={made / 'adapter'}"), ("--reference-only",)):
        words = [str(word).removeprefix("one=") if Bundle.open(bundle).mode == "merged" else word for word in given]
        done = run("verify", bundle, *words, "--data", *data_for(bundle, made))
        assert done.code == 0, done.stderr
    for file in bundle.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for path in (made, bundle, Path.home(), Path.cwd()):
                assert str(path).encode() not in content, f"{file.name} names {path}"


def data_for(bundle: Path, made: Path) -> list[str]:
    data = str(made / "data.jsonl")
    return [data if Bundle.open(bundle).mode == "merged" else f"one={data}"]


def test_what_the_graph_takes_for_what_is_kept_and_shown(made: Path, tmp_path: Path) -> None:
    for mode, heading in (("merged", "What it takes for what"), ("branches", "What it takes for what: one")):
        report = Bundle.open(made / mode).manifest.verification
        assert report is not None
        evaluation = report.evaluation or (report.adapters or {})["one"].evaluation
        assert evaluation is not None and evaluation.details is not None
        confusion, figures = evaluation.details.confusion, evaluation.details.per_class
        assert confusion is not None and figures is not None and list(figures) == ["red", "green", "blue"]
        assert {right: sum(given.values()) for right, given in confusion.items()} == {"red": 2, "green": 1, "blue": 1}
        right = sum(given.get(label, 0) for label, given in confusion.items())
        assert right / 4 == evaluation.onnx
        page = tmp_path / f"{mode}.html"
        assert run("report", made / mode, "-o", page).code == 0
        told = page.read_text(encoding="utf-8")
        assert "<image" not in told  # the page's policy would not load it
        assert f"<h3>{heading}</h3>\n<svg" in told and "<h3>Label by label" in told
