"""A base that comes with Python code of its own, as models on the hub may; the code leaves a mark when it runs."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel
from transformers import BertConfig, BertForSequenceClassification

from tests.helpers.cli import tokenizer
from tests.helpers.models import TOKENS, adapt, lora_config, save_adapter, save_base

__all__ = ["make_own_code"]

_CODE = """
import os
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

Path(os.environ["MARK"]).write_text("it ran")

class OwnConfig(BertConfig):
    model_type = "own-bert"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def make_own_code(directory: Path) -> tuple[Path, Path]:
    """Save a base whose configuration, model and tokenizer are classes in its own file, and an adapter for it."""
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=40,
        id2label={0: "red", 1: "green", 2: "blue"}, **TOKENS,
    )  # fmt: skip
    base = save_base(BertForSequenceClassification(config).eval(), directory / "base")
    tokenizer().save_pretrained(base)
    model: PeftModel = adapt(BertForSequenceClassification.from_pretrained(base), lora_config("bert"), size=0.4)
    adapter = save_adapter(model, directory / "adapter")
    (base / "own_code.py").write_text(_CODE)
    _change(
        base / "config.json",
        model_type="own-bert",
        auto_map={"AutoConfig": "own_code.OwnConfig", "AutoModelForSequenceClassification": "own_code.OwnModel"},
    )
    _change(
        base / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own_code.OwnTokenizer"]},
    )
    return base, adapter


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
