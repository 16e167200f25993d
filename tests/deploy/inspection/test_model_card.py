"""The page about a bundle: what it says, that nothing in it becomes markup, and that it needs no other file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rmlora.markdown_text import bars, code, escaped
from rmlora.package import load_package, write_metadata
from rmlora.spectrum import adapter_spectrum
from rmlora_deploy import export
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inspection.update_spectra import bundle_spectra
from tests.helpers.cli import fails, run, run_process
from tests.helpers.decoders import decoder_adapter, decoder_base
from tests.helpers.handmade import word_bundle


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    base = decoder_base("llama", directory / "base")
    adapters = {
        name: decoder_adapter(base, directory / name, seed=seed) for seed, name in enumerate(("intents", "raw"))
    }
    metrics = {"test": {"exact_match": 0.75, "loss": 0.5}}
    write_metadata(adapters["raw"], {"prompt_format": "raw", "end_tokens": [2], "metrics": metrics})
    export(base, adapters, directory / "home", precision="int8")
    return directory


def test_the_page_has_what_the_manifest_records(home: Path) -> None:
    done = run("report", home / "home")
    assert done.code == 0, done.stderr
    page = done.stdout
    head, body = page.removeprefix("---\n").split("---\n", 1)
    assert 'pipeline_tag: "text-generation"' in head
    report = Bundle.open(home / "home").manifest.verification
    assert report is not None and report.adapters is not None
    for row in report.adapters.values():
        assert row.perplexity is not None and row.perplexity.pytorch is not None
        assert f"| {row.perplexity.pytorch:.2f} | {row.perplexity.onnx:.2f} |" in body
    for text in ("**Passed**", "int8", "256 tokens, prompt and answer together", "a text to continue as it is",
                 "test: exact\\_match 0.75, loss 0.5", "rmlora-deploy generate home", "equal to the bit", "█"):  # fmt: skip
        assert text in body, text
    for name, digest in Bundle.open(home / "home").files.items():
        assert f"`{name}`" in body and digest in body
    assert str(home) not in page
    told = json.loads(run("report", home / "home", "--json").stdout)
    assert told["spectra"].keys() == {"intents", "raw"} and told["spectra"]["raw"]["stable_rank"] > 1
    assert told["precision"] == "int8"


def test_the_spectra_are_those_of_the_packages(home: Path) -> None:
    found = bundle_spectra(Bundle.open(home / "home"))
    for name, spectrum in found.items():
        expected = adapter_spectrum(load_package(home / name))
        assert spectrum.modules.keys() == expected.modules.keys()
        np.testing.assert_allclose(spectrum.joint.singular_values, expected.joint.singular_values, rtol=1e-4)
        assert spectrum.effective_rank == pytest.approx(expected.effective_rank, rel=1e-4)


def test_html_is_one_file_that_loads_nothing(home: Path, tmp_path: Path) -> None:
    done = run("report", home / "home", "-o", tmp_path / "home.html")
    assert done.code == 0, done.stderr
    page = (tmp_path / "home.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "<svg" in page and "<table>" in page
    assert "default-src 'none'" in page and "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page.replace("xlink:href", "href"))
    fails(8, "already exists", "report", home / "home", "-o", tmp_path / "home.html")
    assert run("report", home / "home", "-o", tmp_path / "home.html", "--overwrite").code == 0


def test_other_bundles_and_unverified_ones_have_a_page(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path / "words")
    done = run("report", bundle)
    assert done.code == 0, done.stderr
    for text in ("Not verified", "red, green, blue", 'predict(["A text"])', "rmlora-deploy predict words"):
        assert text in done.stdout, text
    for end in ("md", "html"):
        assert run("report", bundle, "-o", tmp_path / f"page.{end}").code == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == done.stdout
    fails(2, "end the name given to --output in .html or .md", "report", bundle, "-o", tmp_path / "page.pdf")
    fails(8, "is not a directory", "report", bundle, "-o", tmp_path / "no" / "page.md")
    fails(3, "Bundle not found", "report", tmp_path / "no")


def test_latency_is_measured_when_asked_for(tmp_path: Path) -> None:
    done = run("report", word_bundle(tmp_path / "words"), "--latency")
    assert done.code == 0, done.stderr
    assert "## Speed" in done.stdout and "| median ms |" in done.stdout and "| 8 × 32 |" in done.stdout


def test_nothing_from_files_becomes_markup(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path / "words")
    wicked = ["<script>alert(1)</script>", "](javascript:x) ![a](https://x.example/a.png)", "a | b\n# c"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["labels"] = wicked
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert run("report", bundle, "-o", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not any(tag in page for tag in ("<script", "<img", "<a ", "<h1>c"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert escaped("a_b\x1b[0m\nc") == "a\\_b \\[0m c" and code("a`b|c") == "`a'b¦c`"


def test_bars_are_shares_of_the_largest() -> None:
    assert bars([4.0, 2.0, 0.0]) == "█▅▁" and bars([]) == "" and bars([0.0]) == ""


def test_a_page_needs_neither_torch_nor_matplotlib(home: Path, tmp_path: Path) -> None:
    absent = ("torch", "transformers", "peft", "accelerate", "matplotlib")
    done = run_process("report", home / "home", "-o", tmp_path / "page.html", without=absent)
    assert done.code == 0, done.stderr
    assert "without plots" in done.stdout and "█" in (tmp_path / "page.html").read_text(encoding="utf-8")
