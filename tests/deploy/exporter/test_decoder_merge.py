"""Merging an adapter into a graph that the GenAI builder wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rmlora_deploy import export, load
from rmlora_deploy.exporter.decoder.genai_builder import build_decoder
from rmlora_deploy.inference import Generator
from rmlora_deploy.runtime.decoder.decoder_layout import DecoderLayout
from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession
from tests.helpers.cli import fails, run
from tests.helpers.decoders import decoder_adapter, decoder_base


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base, an adapter for it, and the base's graph in fp32 and int8."""
    directory = tmp_path_factory.mktemp("built")
    base = decoder_base("llama", directory / "base")
    decoder_adapter(base, directory / "a", seed=1)
    for precision in ("fp32", "int8"):
        build_decoder(base, directory / precision, precision, provider="cpu")  # type: ignore[arg-type]
    return directory


def test_the_merged_graph_is_compared_with_pytorch_and_is_the_exported_one(made: Path, tmp_path: Path) -> None:
    done = run("merge", made / "base", made / "a", "--onnx", made / "fp32" / "model.onnx", "-o", tmp_path / "merged")
    assert done.code == 0, done.stderr
    verification = json.loads((tmp_path / "merged" / "rmlora_merge.json").read_text())["verification"]
    assert verification["passed"] and verification["onnx"]["max_abs_error"] <= 3e-4 and len(verification["shapes"]) >= 4
    export(made / "base", made / "a", tmp_path / "bundle", verify=False)
    exported = load(tmp_path / "bundle")
    assert isinstance(exported, Generator)
    merged = DecoderSession(tmp_path / "merged" / "model.onnx", DecoderLayout.read(tmp_path / "merged"))
    tokens = exported.codec.encode("a b c", raw=True)
    assert np.abs(merged.logits(tokens) - exported.session.logits(tokens)).max() <= 1e-5


def test_another_models_graph_is_refused(made: Path, tmp_path: Path) -> None:
    decoder_base("llama", tmp_path / "other", seed=9)
    decoder_adapter(tmp_path / "other", tmp_path / "adapter", seed=3)
    fails(
        3,
        "the graph was exported from another base",
        "merge",
        tmp_path / "other",
        tmp_path / "adapter",
        "--onnx",
        made / "fp32" / "model.onnx",
        "-o",
        tmp_path / "no",
    )
    assert not (tmp_path / "no").exists()


def test_a_directory_and_a_quantized_graph_are_refused(made: Path, tmp_path: Path) -> None:
    words = ["merge", made / "base", made / "a", "-o", tmp_path / "no", "--onnx"]
    fails(3, f"is a directory: give the graph in it, as {made / 'fp32' / 'model.onnx'}", *words, made / "fp32")
    fails(3, "is quantized in the graph", *words, made / "int8" / "model.onnx")


def test_without_genais_configuration_it_says_why_it_was_not_compared(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "fp32", tmp_path / "bare")
    (tmp_path / "bare" / "genai_config.json").unlink()
    done = run(
        "merge", made / "base", made / "a", "--onnx", tmp_path / "bare" / "model.onnx", "-o", tmp_path / "merged"
    )
    assert done.code == 0 and "Not compared with PyTorch: there is no genai_config.json beside the graph" in done.stdout
