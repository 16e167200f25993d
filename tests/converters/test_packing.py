"""Products that are computed together, and branches that share two products, give what they gave apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.locate.targets import find_targets
from rmlora_converters.graph.passes.insert_branches import insert_branches
from rmlora_converters.graph.passes.pack_factors import pack_factors, packed_arrays
from rmlora_converters.graph.passes.pack_products import pack_products
from rmlora_deploy.runtime.providers import create_session
from tests.helpers.block_graphs import float_graph, in_blocks

Floats = npt.NDArray[np.float32]

FLOAT = np.dtype(np.float32)
FAN_IN = 64
WIDTHS = {"q": 32, "k": 16, "v": 16}
PATHS = {name: f"model.layers.0.self_attn.{name}_proj" for name in WIDTHS}


def answers(model: ir.Model, path: Path, feeds: dict[str, npt.NDArray[np.generic]]) -> list[Floats]:
    ir.save(model, path)
    return [np.asarray(output) for output in create_session(path, threads=1).run(None, feeds)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 5])
def test_products_of_one_input_are_computed_at_once_and_give_the_same_bits(
    tmp_path: Path, bits: int, tokens: int, symmetric: bool
) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(FAN_IN, width)).astype(np.float32) for name, width in WIDTHS.items()}
    model = in_blocks(float_graph(weights), bits, symmetric=symmetric)
    x = {"x": rng.normal(size=(2, tokens, FAN_IN)).astype(np.float32)}
    want = answers(model, tmp_path / "apart.onnx", x)
    assert pack_products(model) == 3
    assert [node.op_type for node in model.graph].count("MatMulNBits") == 1
    assert all(value.uses() for value in model.graph.initializers.values())  # the weights are not stored twice
    for got, expected in zip(answers(model, tmp_path / "packed.onnx", x), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert pack_products(model) == 0


def test_products_of_other_schemes_stay_apart() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(FAN_IN, width)).astype(np.float32) for name, width in WIDTHS.items()}
    model = in_blocks(float_graph(weights), 8, symmetric=True)
    node = next(node for node in model.graph if node.op_type == "MatMulNBits")
    node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    assert pack_products(model) == 2


def packed_graph(directory: Path, adapted: list[str], ranks: list[int]) -> tuple[ir.Model, LoraInputs, Adapter]:
    """Return a graph with branches at some parts of one product for q, k and v."""
    rng = np.random.default_rng(0)
    weights = {PATHS[name]: rng.normal(size=(FAN_IN, width)).astype(np.float32) for name, width in WIDTHS.items()}
    model = float_graph({"qkv": np.concatenate(list(weights.values()), axis=1)})
    modules = {
        PATHS[name]: LoraModule(
            PATHS[name], "linear", rng.normal(size=(rank, FAN_IN)).astype(np.float32),
            rng.normal(size=(WIDTHS[name], rank)).astype(np.float32), 0.5,
        )
        for name, rank in zip(adapted, ranks, strict=True)
    }  # fmt: skip
    adapter = Adapter(modules)
    stored = {f"{path}.weight": np.ascontiguousarray(weight.T) for path, weight in weights.items()}
    save_file(stored, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    targets = find_targets(model, [adapter], Checkpoint(directory))
    return model, insert_branches(model, targets, base_weights={}), adapter


@pytest.mark.parametrize(("adapted", "ranks"), [("q k v", [4, 2, 3]), ("q v", [2, 2]), ("k v", [1, 5])])
def test_packed_factors_give_what_the_factors_gave(tmp_path: Path, adapted: str, ranks: list[int]) -> None:
    rng = np.random.default_rng(1)
    model, lora_inputs, adapter = packed_graph(tmp_path, adapted.split(), ranks)
    x = {"x": rng.normal(size=(2, 3, FAN_IN)).astype(np.float32)}
    arrays = adapter_arrays(adapter, lora_inputs, dict.fromkeys(lora_inputs.names, FLOAT))
    base = answers(model, tmp_path / "branches.onnx", dict(x))[0]
    want = answers(model, tmp_path / "branches.onnx", {**x, **arrays})[0]
    groups = pack_factors(model, lora_inputs)
    assert len(groups) == 1 and groups[0].names == set(lora_inputs.names)
    assert [node.op_type for node in model.graph].count("MatMul") == 3
    packed = packed_arrays(groups, arrays)
    assert {array.shape for array in packed.values()} == {(1, FAN_IN, sum(ranks)), (1, sum(ranks), 64)}
    np.testing.assert_allclose(answers(model, tmp_path / "packed.onnx", {**x, **packed})[0], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(answers(model, tmp_path / "packed.onnx", dict(x))[0], base)


def test_an_adapter_that_changes_some_of_the_modules_is_packed_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    model, lora_inputs, adapter = packed_graph(tmp_path, ["q", "k", "v"], [4, 4, 4])
    x = {"x": rng.normal(size=(2, 3, FAN_IN)).astype(np.float32)}
    arrays = adapter_arrays(adapter, lora_inputs, dict.fromkeys(lora_inputs.names, FLOAT))
    some = {name: array for name, array in arrays.items() if "k_proj" in name}
    want = answers(model, tmp_path / "branches.onnx", {**x, **some})[0]
    groups = pack_factors(model, lora_inputs)
    got = answers(model, tmp_path / "packed.onnx", {**x, **packed_arrays(groups, some)})[0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert packed_arrays(groups, {}) == {}


def test_a_wide_product_keeps_the_factors_of_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmlora_converters.graph.passes.pack_factors._MOST_ZEROS", 4 * 2 * 64)
    model, lora_inputs, _ = packed_graph(tmp_path, ["q", "k", "v"], [4, 4, 4])
    assert pack_factors(model, lora_inputs, rank=5) == []
    assert {value.name for value in model.graph.inputs} == {"x", *lora_inputs.names}
    assert len(pack_factors(model, lora_inputs, rank=4)) == 1
