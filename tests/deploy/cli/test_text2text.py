"""Models with encoder and decoder: their adapters are merged, and not exported for a reason that is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from tests.helpers.cli import fails, run

_T5 = T5Config(
    vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, pad_token_id=0,
)  # fmt: skip
_BART = BartConfig(
    vocab_size=40, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
)  # fmt: skip
CASES: dict[str, tuple[Any, Any, list[str]]] = {
    "t5": (T5ForConditionalGeneration, _T5, ["q", "v", "wi", "wo"]),
    "bart": (BartForConditionalGeneration, _BART, ["q_proj", "v_proj", "fc1"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_merged_model_generates_what_peft_generates(name: str, tmp_path: Path) -> None:
    kind, config, targets = CASES[name]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        kind.from_pretrained(tmp_path / "base"), LoraConfig(r=4, target_modules=targets, task_type="SEQ_2_SEQ_LM")
    )
    with torch.no_grad():
        for path, parameter in adapted.named_parameters():
            if "lora_B" in path:
                parameter.normal_(std=0.3)
    adapted.eval().save_pretrained(str(tmp_path / "adapter"))
    done = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged")
    assert done.code == 0, done.stderr
    merged = kind.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([[5, 6, 7, 9], [8, 3, 4, 11]])
    more = {"decoder_input_ids": torch.tensor([[0, 4, 5], [0, 9, 7]])}
    torch.testing.assert_close(merged(ids, **more).logits, adapted(input_ids=ids, **more).logits, rtol=1e-4, atol=1e-5)
    asked: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1}
    assert torch.equal(merged.generate(ids, **asked), adapted.generate(input_ids=ids, **asked))
    for mode in ("merged", "branches"):
        fails(3, "takes two graphs and a second cache", "export", tmp_path / "base", "-a", tmp_path / "adapter", "-o",
              tmp_path / "no", "--mode", mode)  # fmt: skip
