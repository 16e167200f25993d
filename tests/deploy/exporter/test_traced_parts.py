"""Parts of a model that the operators of a traced graph cannot express are refused in one sentence, whatever the lists say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

from rmlora.errors import CheckpointError, InputError
from rmlora_converters.graph.locate.consumers import find_consumers
from rmlora_converters.graph.locate.weights import WeightQuery, find_weights
from rmlora_deploy.exporter.decoder.block_products import quantize_in_blocks
from rmlora_deploy.exporter.decoder.cached_attention import CachedAttention
from rmlora_deploy.exporter.decoder.own_attention import replace_layers
from rmlora_deploy.exporter.decoder.trace_decoder import cache_shape
from tests.helpers.decoders import decoder_base


def test_attention_with_a_mask_or_a_part_of_its_own_is_refused() -> None:
    heads = torch.zeros(1, 2, 3, 8)
    layer = SimpleNamespace(layer_idx=0)
    with pytest.raises(InputError, match="SimpleNamespace gives its attention a mask of its own"):
        CachedAttention()(layer, heads, heads, heads, torch.zeros(1, 1, 3, 3))
    with pytest.raises(InputError, match="gives its attention 's_aux'"):
        CachedAttention()(layer, heads, heads, heads, None, s_aux=torch.zeros(2))


def test_a_layer_that_never_calls_the_attention_is_refused() -> None:
    cache = CachedAttention()
    cache.begin([torch.zeros(1, 2, 4, 8)] * 2, torch.ones(1, 3), 1)
    with pytest.raises(InputError, match="Layer 0 of the model does not call the attention"):
        _ = cache.present


@pytest.mark.parametrize("name", ["lfm2", "deepseek"])
def test_a_cache_of_another_form_is_refused(name: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(decoder_base(name, tmp_path / "base"), dtype=torch.float32)
    with pytest.raises(CheckpointError, match="does not keep keys and values of one size in all layers"):
        cache_shape(model)


def test_experts_of_another_form_are_refused() -> None:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_local_experts": 2,
        "vocab_size": 99,
    }
    model = GptOssForCausalLM(GptOssConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=16))
    with pytest.raises(InputError, match="The experts of GptOssExperts are not those of ONNX Runtime's operator MoE"):
        replace_layers(model, CachedAttention())


@pytest.mark.parametrize("bits", [4, 8])
def test_the_rounded_product_of_a_tied_layer_is_found_not_the_embedding(bits: Literal[4, 8]) -> None:
    table = np.random.default_rng(0).normal(size=(48, 64)).astype(np.float32)
    weight = ir.Value(name="wte.weight", const_value=ir.tensor(table, name="wte.weight"))
    ids = ir.Value(name="ids", shape=ir.Shape([5]), type=ir.TensorType(ir.DataType.INT64))
    rows = ir.node("Gather", [weight, ids])
    turned = ir.node("Transpose", [weight], {"perm": [1, 0]})
    logits = ir.node("MatMul", [rows.outputs[0], turned.outputs[0]], name="head")
    logits.outputs[0].type, logits.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([5, 48])
    nodes = [rows, turned, logits]
    graph = ir.Graph([ids], logits.outputs, nodes=nodes, initializers=[weight], opset_imports={"": 20}, name="tied")
    model = quantize_in_blocks(ir.Model(graph, ir_version=10), bits)
    base = type("Base", (), {"tensors": {"wte.weight": SimpleNamespace(read=lambda: table)}, "config": {}})()
    query = WeightQuery("wte.weight", "linear", (48, 64))
    (found,) = find_weights(model, [query], base, quantized=True).values()
    assert found.initializer != "wte.weight" and (found.start, found.stop) == (0, 48)
    (consumer,) = find_consumers(model.graph, found)
    assert consumer.how == "product"


def test_importing_the_quantizer_leaves_logging_as_it_is() -> None:
    import logging

    from rmlora_deploy.exporter.quiet import quiet_libraries

    before = list(logging.root.handlers), logging.root.level
    with quiet_libraries():
        logging.root.handlers.clear()
        logging.basicConfig(level=logging.INFO)  # as onnxruntime's quantizer of blocks does when it is imported
    assert (list(logging.root.handlers), logging.root.level) == before
