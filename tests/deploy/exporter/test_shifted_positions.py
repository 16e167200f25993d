"""DeBERTa's scores of relative positions by shifting are transformers' own, and the graph picks none with ``gather``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Model

from rmlora_deploy import export
from rmlora_deploy.exporter.shifted_positions import shifted_positions
from tests.helpers.answers import make_adapter
from tests.helpers.cli import tokenizer
from tests.helpers.models import VOCABULARY, save_base

TINY = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "relative_attention": True, "max_relative_positions": -1, "max_position_embeddings": 16, "type_vocab_size": 0,
    "norm_rel_ebd": "layer_norm", "position_biased_input": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True},
        {"pos_att_type": ["p2c", "c2p"], "position_buckets": -1, "share_att_key": False},
        {"pos_att_type": ["c2p"], "position_buckets": 4, "share_att_key": True},
        {"pos_att_type": ["p2c"], "position_buckets": 4, "share_att_key": False},
    ],
)
def test_the_scores_are_those_of_transformers(more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = DebertaV2Model(DebertaV2Config(**TINY, **more)).eval()
    for length in (1, 2, 7, 16, 30):  # the last has distances beyond the table
        ids, mask = torch.randint(0, VOCABULARY, (3, length)), torch.ones(3, length, dtype=torch.long)
        mask[1, length // 2 + 1 :] = 0
        with torch.no_grad():
            expected = model(ids, attention_mask=mask).last_hidden_state
            with shifted_positions(model):
                got = model(ids, attention_mask=mask).last_hidden_state
            after = model(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(after, expected, rtol=0, atol=0)


def test_the_graph_picks_nothing_with_gather(tmp_path: Path) -> None:
    base, config = tmp_path / "base", DebertaV2Config(**TINY, pos_att_type=["p2c", "c2p"], position_buckets=8)
    save_base(DebertaV2ForSequenceClassification(config), base)
    tokenizer().save_pretrained(base)
    export(base, make_adapter(base, tmp_path / "adapter"), tmp_path / "bundle")
    graph = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False).graph
    assert "GatherElements" not in {node.op_type for node in graph.node}
