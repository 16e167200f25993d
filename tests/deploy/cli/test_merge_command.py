"""``rmlora-deploy merge`` and the bases it takes: directories, shards, GGUF; errors on message and exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rmlora.base import resolve_base
from rmlora.errors import CheckpointError
from tests.helpers.bundles import make_sources
from tests.helpers.cli import fails, run
from tests.helpers.models import build, save_base


def test_merge_reports_and_keeps_the_tokenizer(tmp_path: Path) -> None:
    base, adapter = make_sources("bert", tmp_path)
    done = run("merge", base, adapter, "-o", tmp_path / "merged", "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["modules"]) == 8
    assert report["worst_loss"] < 1e-6
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["id2label"] == {"0": "red", "1": "green", "2": "blue"}
    shown = run("merge", base, adapter, "-o", tmp_path / "merged", "--overwrite")
    assert "Merged 8 modules" in shown.stdout
    fails(8, "already exists", "merge", base, adapter, "-o", tmp_path / "merged")


def test_an_adapter_that_names_another_base_is_merged_with_a_warning(tmp_path: Path) -> None:
    base, adapter = make_sources("bert", tmp_path)
    (adapter / "rmlora.json").unlink(missing_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for recorded, warned in ((f"someone/{base.name}", False), ("someone/another", True)):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": recorded}))
        merged = run("merge", base, adapter, "-o", tmp_path / "merged", "--overwrite", "--json")
        shown = run("inspect", adapter, "--base", base)
        for done in (merged, shown):
            told = " ".join(done.stderr.split())
            assert done.code == 0 and ("was made for 'someone/another', and the base here is" in told) == warned, told
        assert json.loads(merged.stdout)


def test_bases_that_cannot_be_read(tmp_path: Path) -> None:
    base, adapter = make_sources("bert", tmp_path)
    words = [adapter, "-o", tmp_path / "merged"]
    fails(3, "Base model not found: ./nowhere does not exist", "merge", "./nowhere", *words)
    fails(3, "the only model files accepted are .gguf files", "merge", base / "config.json", *words)
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:-100])
    fails(3, "is not a complete safetensors file", "merge", broken, *words)
    (broken / "model.safetensors").unlink()
    fails(3, "it is not a model checkpoint", "merge", broken, *words)
    (broken / "pytorch_model.bin").write_bytes(b"pickle")
    fails(3, "holds only pickled weights (pytorch_model.bin)", "merge", broken, *words)
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    fails(3, "cannot be read as a GGUF model", "merge", tmp_path / "no.gguf", *words)


def test_broken_shards(tmp_path: Path) -> None:
    _, adapter = make_sources("bert", tmp_path)
    sharded = save_base(build("bert"), tmp_path / "sharded", max_shard_size="8KB")
    words = ["merge", sharded, adapter, "-o", tmp_path / "merged"]
    index_path = sharded / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    first = next(iter(index["weight_map"].values()))
    shutil.move(sharded / first, tmp_path / "kept")
    fails(3, f"names the shard {first}, which is missing", *words)
    shutil.move(tmp_path / "kept", sharded / first)
    index_path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], "ghost.weight": first}}))
    fails(3, "places tensor 'ghost.weight' in", *words)
    index_path.write_text(json.dumps({**index, "weight_map": {"a": "../outside.safetensors"}}))
    fails(3, "which is not a path inside", *words)
    index_path.write_text("{}")
    fails(3, "lacks 'weight_map': the index is broken", *words)


def test_a_directory_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.Q4_1.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="a.Q4_1.gguf cannot be read as a GGUF model"):
        resolve_base(tmp_path)
    (tmp_path / "b.Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files \(a.Q4_1.gguf, b.Q8_0.gguf\): name one of them"):
        resolve_base(tmp_path)
