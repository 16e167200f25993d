"""Classifiers of the causal kind know the token that pads their batches, whatever their configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rmlora.processors import load_tokenizer
from rmlora.tasks import TASKS
from rmlora.torch_models import load_task_model
from tests.helpers.cli import tokenizer
from tests.helpers.models import VOCABULARY

TASK = TASKS["text-classification"]


def save_llama(directory: Path, **tokens: Any) -> Path:
    """Save a tiny language model whose configuration names these tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, bos_token_id=None, **tokens)).save_pretrained(
        directory
    )
    return directory


@pytest.mark.parametrize(
    "tokens", [{"eos_token_id": [2, 5], "pad_token_id": None}, {"eos_token_id": 2, "pad_token_id": 7}]
)
def test_scores_of_a_text_do_not_depend_on_longer_texts_in_its_batch(tmp_path: Path, tokens: dict[str, Any]) -> None:
    base = save_llama(tmp_path, **tokens)
    tokenizer().save_pretrained(base)
    model = load_task_model(base, TASK, ["a", "b", "c"]).model.eval()
    padded = load_tokenizer(base)
    short, long = "w1 w2", "w3 w4 w5 w6 w7"
    with torch.no_grad():
        alone = model(**padded([short], return_tensors="pt")).logits[0]
        beside = model(**padded([short, long], padding=True, return_tensors="pt")).logits[0]
    torch.testing.assert_close(beside, alone)


def test_without_a_tokenizer_the_end_of_text_token_pads(tmp_path: Path) -> None:
    found = load_task_model(save_llama(tmp_path, eos_token_id=[2, 5], pad_token_id=None), TASK, ["a", "b"])
    assert found.model.config.pad_token_id == 2
