"""How many tokens a base reads is found by asking it, and training cuts to no more than these."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmlora.inputs import TextInputs
from rmlora.package import load_package
from rmlora.pooling import read_text_length
from rmlora.training.readable_length import readable_length
from rmlora.training.run import train
from rmlora.training.settings import TrainSettings
from tests.helpers.cli import tokenizer
from tests.helpers.models import build, encoder_of, save_base
from tests.helpers.similar_texts import scored_pairs, write_lines


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [("bert", 128, 40), ("bert", 40, 40), ("bert", 7, 7), ("roberta", 128, 42), ("gpt2", 41, 40), ("llama", 128, 128)],
)
def test_the_length_is_what_the_model_computes(name: str, wanted: int, expected: int) -> None:
    """RoBERTa's first positions are kept for padding, and Llama's have no end."""
    model = build(name).train()
    assert readable_length(model, TextInputs(), tokenizer(), wanted) == expected
    assert model.training


def test_a_run_records_what_the_base_reads(tmp_path: Path) -> None:
    base = save_base(encoder_of(build("bert")), tmp_path / "base")
    tokenizer().save_pretrained(base)
    data = str(write_lines(tmp_path / "train.jsonl", scored_pairs(24)))
    made = train(TrainSettings(str(base), data, tmp_path / "adapter", task="feature-extraction", epochs=1))
    assert read_text_length(made.output) == 40
    assert load_package(made.output).metadata["training"]["settings"]["max_length"] == 40
