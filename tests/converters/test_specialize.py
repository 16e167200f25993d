"""An adapter is merged into the weights of a graph with branches, or refused where these are rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from rmlora.adapter import Adapter, LoraModule
from rmlora.errors import ConfigError
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.locate.targets import find_targets
from rmlora_converters.graph.passes.insert_branches import insert_branches
from rmlora_converters.graph.passes.specialize import specialize
from rmlora_deploy.runtime.providers import create_session
from tests.helpers.block_graphs import float_graph

RNG = np.random.default_rng(0)
WIDTH = 32


@pytest.mark.parametrize("quantized", [False, True])
def test_only_weights_in_floating_point_take_an_update(quantized: bool, tmp_path: Path) -> None:
    """A graph that its owner quantized keeps its 8-bit weights beside the branches."""
    path = tmp_path / "given.onnx"
    save_model(float_graph({"q": RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32)}), path)
    if quantized:
        quantize_dynamic(path, path, weight_type=QuantType.QInt8)
    factors = RNG.normal(size=(2, WIDTH)).astype(np.float32), RNG.normal(size=(WIDTH, 2)).astype(np.float32)
    adapter = Adapter({"q": LoraModule("q", "linear", *factors, 0.5)})
    model = load_model(path)
    inputs = insert_branches(model, find_targets(model, [adapter], None), base_weights={})
    arrays = adapter_arrays(adapter, inputs, dict.fromkeys(inputs.names, np.dtype(np.float32)))
    save_model(model, path)
    if quantized:
        with pytest.raises(ConfigError, match="The weight of 'q' is quantized, so no adapter can be merged into it"):
            specialize(model, inputs, arrays)
        return
    x = RNG.normal(size=(1, 2, WIDTH)).astype(np.float32)
    expected = create_session(path).run(None, {"x": x, **arrays})[0]
    specialize(model, inputs, arrays)
    save_model(model, path)
    np.testing.assert_allclose(create_session(path).run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)
