"""The small files of a base go with the merged model, pooling included."""

from __future__ import annotations

from pathlib import Path

from rmlora.adapter import Adapter
from rmlora.pooling import Pooling, read_pooling, read_text_length
from rmlora_converters.side_files import copy_side_files, write_trained_pooling
from tests.helpers.encoders import write_modules


def test_a_merged_checkpoint_keeps_its_pooling(tmp_path: Path) -> None:
    source = write_modules(tmp_path / "base", {"pooling_mode": "lasttoken"}, more=["Normalize"])
    (source / "config.json").write_text("{}")
    (source / "1_Pooling" / "old.bin").write_bytes(b"pickle")
    (source / "adapter_config.json").write_text("{}")  # of an adapter that lies beside the base
    (tmp_path / "merged").mkdir()
    copy_side_files(source, tmp_path / "merged", but=("config.json",))
    assert read_pooling(tmp_path / "merged") == Pooling("last", normalize=True)
    kept = {path.relative_to(tmp_path / "merged").as_posix() for path in (tmp_path / "merged").rglob("*.*")}
    assert kept == {"modules.json", "1_Pooling/config.json"}


def test_a_merged_checkpoint_cuts_texts_as_the_adapter_was_trained(tmp_path: Path) -> None:
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    pooling = {"mode": "cls", "normalize": False}
    training = {"settings": {"max_length": 64}}
    write_trained_pooling(tmp_path, Adapter({}, metadata={"pooling": pooling, "dimensions": 8, "training": training}))
    assert read_pooling(tmp_path) == Pooling("cls", normalize=False) and read_text_length(tmp_path) == 64
    write_trained_pooling(tmp_path, Adapter({}, metadata={"training": training}))
    assert read_text_length(tmp_path) == 64
