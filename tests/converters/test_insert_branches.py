"""A graph with branches computes the base, any of its adapters, and a batch that mixes them, whatever the exporter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, InputError
from rmlora.package import load_package
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.contract.lora_inputs import LoraInputs, read_lora_inputs
from rmlora_converters.graph.files.model_file import load_model
from rmlora_converters.graph.files.onnx_adapter import write_onnx_adapter
from rmlora_converters.graph.locate.targets import find_targets
from rmlora_converters.graph.passes.insert_branches import insert_branches
from rmlora_converters.graph.passes.open_attention import open_attention_per_projection
from rmlora_deploy.runtime.providers import create_session
from tests.helpers.branch_graphs import FLOAT, Branched, make_adapters, make_branched
from tests.helpers.exports import anonymous, export
from tests.helpers.models import ARCHITECTURES, lora_config

NAMES = sorted(name for name in ARCHITECTURES if ARCHITECTURES[name].task)
"""All but the T5 encoder, which torch's exporter cannot trace with dynamic shapes."""


def three(name: str, directory: Path) -> dict[str, Path]:
    """Save adapters of three ranks; one changes only some of the modules, one uses rsLoRA scaling."""
    targets = list(ARCHITECTURES[name].targets)
    return make_adapters(
        name,
        directory,
        {
            "small": lora_config(name, r=2, target_modules=targets[:2]),
            "plain": lora_config(name),
            "large": lora_config(name, r=9, lora_alpha=3, use_rslora=True),
        },
    )


@pytest.fixture(
    scope="module",
    params=[(name, form) for name in NAMES for form in ("plain", "optimized", "anonymous")],
    ids="-".join,
)
def branched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Branched, Path]:
    """Return a graph with branches, and the export it was made from."""
    name, form = request.param
    directory = tmp_path_factory.mktemp(name)
    (directory / "onnx").mkdir()
    graph = export_of(name, directory, form)
    return make_branched(name, graph, directory, three(name, directory)), graph


def export_of(name: str, directory: Path, form: str) -> Path:
    graph = export(name, directory / "onnx" / "model.onnx", optimized=form != "plain")
    return anonymous(graph) if form == "anonymous" else graph


def branch(model: ir.Model, adapter: Adapter, base: Checkpoint | None = None) -> LoraInputs:
    open_attention_per_projection(model)
    return insert_branches(model, find_targets(model, [adapter], base), base_weights={})


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_without_inputs_the_graph_equals_the_base_bit_by_bit(branched: tuple[Branched, Path]) -> None:
    made, graph = branched
    inputs = made.inputs()
    plain = create_session(graph).run(None, inputs)[0]
    np.testing.assert_array_equal(create_session(made.path).run(None, inputs)[0], plain)
    np.testing.assert_array_equal(np.stack(made.session().run(inputs)), plain)


@pytest.mark.parametrize(
    ("level", "without", "tolerance"),
    [
        (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, [], 0.0),
        (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, [], 0.0),
        (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ["SkipLayerNormFusion"], 0.0),
        (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, [], 2e-6),  # fused, two sums are in another order than in the base
    ],
    ids=["nothing optimized", "basic", "all but one fusion", "default"],
)
def test_without_inputs_in_a_session_of_ones_own(
    branched: tuple[Branched, Path], level: ort.GraphOptimizationLevel, without: list[str], tolerance: float
) -> None:
    made, graph = branched
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    got, plain = (
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=without).run(
            None, made.inputs()
        )[0]
        for path in (made.path, graph)
    )
    assert relative(got, plain) <= tolerance


def test_every_adapter_equals_peft(branched: tuple[Branched, Path]) -> None:
    made, _ = branched
    session = made.session()
    for name in made.adapters:
        assert relative(np.stack(session.run(made.inputs(), name)), made.expected(name)) <= 1e-5, name


def test_every_row_of_a_mixed_batch_equals_a_single_run(branched: tuple[Branched, Path]) -> None:
    made, _ = branched
    session = made.session()
    rng = np.random.default_rng(0)
    choices = [None, *made.adapters]
    for seed in range(4):
        rows = int(rng.integers(2, 9))
        inputs = made.inputs(batch=rows, seed=seed)
        chosen = [choices[i] for i in rng.integers(0, len(choices), rows)]
        got = session.run(inputs, chosen)
        for row, name in enumerate(chosen):
            alone = session.run(inputs, name)[row]
            assert relative(got[row], alone) <= 1e-5, (seed, row, name)


def test_onnxruntimes_own_adapters_give_the_same(branched: tuple[Branched, Path], tmp_path: Path) -> None:
    made, _ = branched
    session = create_session(made.path)
    for name in made.adapters:
        write_onnx_adapter(tmp_path / f"{name}.onnx_adapter", made.arrays(name))
        adapter = ort.LoraAdapter()
        adapter.Load(str(tmp_path / f"{name}.onnx_adapter"))
        options = ort.RunOptions()
        options.add_active_adapter(adapter)
        got = session.run(None, made.inputs(), options)[0]
        np.testing.assert_array_equal(got, np.stack(made.session().run(made.inputs(), name)))


def test_the_graph_is_valid_and_lists_its_lora_inputs(branched: tuple[Branched, Path]) -> None:
    made, _ = branched
    model = load_model(made.path)
    if all(node.domain == "" for node in model.graph):
        onnx.checker.check_model(made.path)
    assert read_lora_inputs(model.metadata_props, where="graph") == made.lora_inputs
    assert {branch.module for branch in made.lora_inputs.modules} == set().union(
        *(load_package(path).modules for path in made.adapters.values())
    )


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("bert", ["word_embeddings", "query"]),
        ("bert", ["position_embeddings", "word_embeddings"]),
        ("vit", ["projection", "fc1"]),
        ("dinov2", ["projection"]),
        ("gpt2", ["wte", "c_attn"]),
    ],
)
def test_embeddings_and_patches(name: str, targets: list[str], tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    adapters = make_adapters(
        name,
        tmp_path,
        {"one": lora_config(name, target_modules=targets), "two": lora_config(name, r=6, target_modules=targets)},
    )
    made = make_branched(name, export_of(name, tmp_path, "optimized"), tmp_path, adapters)
    session = made.session()
    inputs = made.inputs()
    for adapter in adapters:
        assert relative(np.stack(session.run(inputs, adapter)), made.expected(adapter)) <= 1e-5
    mixed = session.run(inputs, ["one", "two", None])
    for row, adapter in enumerate(("one", "two", None)):
        assert relative(mixed[row], session.run(inputs, adapter)[row]) <= 1e-5


def test_some_modules_of_a_packed_product(tmp_path: Path) -> None:
    """Query and value are adapted, the key between them is not; one weight packs all three."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 8, 8)).astype(np.float32)
    packed = ir.Value(
        name="packed", const_value=ir.tensor(np.concatenate([w.T for w in weights], axis=1), name="packed")
    )
    x = ir.Value(name="x", shape=ir.Shape(["batch", "n", 8]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("MatMul", [x, packed], name="product")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[packed], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    base = type("Base", (), {"tensors": {}, "config": {}})()
    for name, weight in zip(("q", "k", "v"), weights, strict=True):
        base.tensors[f"{name}.weight"] = type("T", (), {"read": lambda self, weight=weight: weight, "shape": (8, 8)})()
    factors = {name: (rng.normal(size=(2, 8)), rng.normal(size=(8, 2))) for name in ("q", "v")}
    modules = {
        n: LoraModule(n, "linear", a.astype(np.float32), b.astype(np.float32), 0.5) for n, (a, b) in factors.items()
    }
    adapter = Adapter(modules)
    lora_inputs = branch(model, adapter, base)
    ir.save(model, tmp_path / "m.onnx")
    feeds = adapter_arrays(adapter, lora_inputs, dict.fromkeys(lora_inputs.names, FLOAT))
    values = rng.normal(size=(3, 5, 8)).astype(np.float32)
    got = create_session(tmp_path / "m.onnx").run(None, {"x": values, **feeds})[0]
    updated = [
        weight + (0.5 * factors[name][1] @ factors[name][0] if name in factors else 0)
        for name, weight in zip(("q", "k", "v"), weights, strict=True)
    ]
    np.testing.assert_allclose(got, np.concatenate([values @ w.T for w in updated], axis=-1), rtol=1e-4, atol=1e-5)


def test_errors_name_what_cannot_be_adapted(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    graph = export_of("bert", tmp_path, "plain")
    adapters = make_adapters("bert", tmp_path, {"one": lora_config("bert")})
    loaded = load_package(adapters["one"])
    first = next(iter(loaded.modules.values()))
    elsewhere = replace(loaded, modules={"nowhere.dense": replace(first, path="nowhere.dense")})
    with pytest.raises(AdapterError, match=r"no weight named like 'nowhere.dense.weight'.*Weights of that size are"):
        branch(ir.load(graph), elsewhere)
    norm = replace(loaded, modules_to_save={"bert.embeddings.LayerNorm.weight": np.ones(16, np.float32)})
    with pytest.raises(AdapterError, match="only linear modules can be switched: merge this adapter"):
        branch(ir.load(graph), norm)
    with pytest.raises(InputError, match="has no LoRA inputs: make it with"):
        read_lora_inputs(ir.load(graph).metadata_props, where="model.onnx")


def test_an_adapter_of_other_modules_is_refused(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    adapters = make_adapters(
        "bert", tmp_path, {"one": lora_config("bert", target_modules=["query"]), "two": lora_config("bert")}
    )
    made = make_branched("bert", export_of("bert", tmp_path, "plain"), tmp_path, {"one": adapters["one"]})
    dtypes = dict.fromkeys(made.arrays("one"), FLOAT)
    with pytest.raises(AdapterError, match=r"no branch for 'bert.encoder.layer.0.*: export again with this adapter"):
        adapter_arrays(load_package(adapters["two"]), made.lora_inputs, dtypes)


def test_a_module_called_twice_has_one_pair_of_inputs_and_two_branches(tmp_path: Path) -> None:
    """As in ALBERT, whose layers share their weights."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 8)).astype(np.float32)
    value = ir.Value(name="w.weight", const_value=ir.tensor(weight, name="w.weight"))
    x = ir.Value(name="x", shape=ir.Shape(["batch", "n", 8]), type=ir.TensorType(ir.DataType.FLOAT))
    first = ir.node("MatMul", [x, value], name="first")
    second = ir.node("MatMul", [first.outputs[0], value], name="second")
    for node in (first, second):
        node.outputs[0].name, node.outputs[0].type = f"{node.name}_y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], second.outputs, nodes=[first, second], initializers=[value], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    a, b = rng.normal(size=(2, 8)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    adapter = Adapter({"w": LoraModule("w", "linear", a, b, 1.0)})
    lora_inputs = branch(model, adapter)
    ir.save(model, tmp_path / "m.onnx")
    feeds = adapter_arrays(adapter, lora_inputs, {"w.lora_A": FLOAT, "w.lora_B": FLOAT})
    values = rng.normal(size=(2, 3, 8)).astype(np.float32)
    got = create_session(tmp_path / "m.onnx").run(None, {"x": values, **feeds})[0]
    updated = weight + (b @ a).T
    np.testing.assert_allclose(got, values @ updated @ updated, rtol=1e-4, atol=1e-4)


def test_quantized_products_by_the_genai_builders_names(tmp_path: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    rng = np.random.default_rng(0)
    name, path = "model.layers.0.attn.q_proj.MatMul.weight", "model.layers.0.self_attn.q_proj"
    weight = rng.normal(size=(64, 32)).astype(np.float32)
    value = ir.Value(name=name, const_value=ir.tensor(weight, name=name))
    x = ir.Value(name="x", shape=ir.Shape(["batch", "n", 64]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("MatMul", [x, value], name="/model/layers.0/attn/q_proj/MatMul")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(["batch", "n", 32])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 21}, name="g")
    quantizer = MatMulNBitsQuantizer(ir.serde.serialize_model(ir.Model(graph, ir_version=10)), block_size=32)
    quantizer.process()
    model = ir.serde.deserialize_model(quantizer.model.model)
    assert [node.op_type for node in model.graph] == ["MatMulNBits"]
    ir.save(model, tmp_path / "base.onnx")
    factors = rng.normal(size=(4, 64)).astype(np.float32), rng.normal(size=(32, 4)).astype(np.float32)
    adapter = Adapter({path: LoraModule(path, "linear", *factors, 0.5)})
    lora_inputs = branch(model, adapter)
    ir.save(model, tmp_path / "branches.onnx")
    values = rng.normal(size=(2, 3, 64)).astype(np.float32)
    base = create_session(tmp_path / "base.onnx").run(None, {"x": values})[0]
    session = create_session(tmp_path / "branches.onnx")
    np.testing.assert_array_equal(session.run(None, {"x": values})[0], base)
    feeds = adapter_arrays(adapter, lora_inputs, dict.fromkeys(lora_inputs.names, FLOAT))
    got = session.run(None, {"x": values, **feeds})[0]
    np.testing.assert_allclose(got, base + 0.5 * values @ factors[0].T @ factors[1].T, rtol=1e-4, atol=1e-4)
