"""Modules that compute what is the same for all rows: with an adapter per row, every operator after them keeps rows apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser, shape_inference

from rmlora.adapter import Adapter, LoraModule
from rmlora.errors import AdapterError
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.locate.targets import find_targets
from rmlora_converters.graph.passes.gather_adapters import ADAPTER_INDICES, gather_adapters
from rmlora_converters.graph.passes.insert_branches import insert_branches
from rmlora_converters.graph.passes.specialize import specialize

FLOAT = np.dtype(np.float32)
K, WIDTH = 6, 4
"""Sizes of the table ``[K, WIDTH]`` that a module projects with the weight ``w.weight``."""

TAILS = {
    "plain product": "p = Transpose<perm=[1,0]>(t) y = MatMul(x, p)",
    "transposed without perm": "p = Transpose(t) y = MatMul(x, p)",
    "shared with the text": "q = MatMul(x, w.weight) p = Transpose<perm=[1,0]>(t) y = MatMul(q, p)",
    "bias and activation": "u = Add(t, b) v = Relu(u) p = Transpose<perm=[1,0]>(v) y = MatMul(x, p)",
    "one row more": "u = Unsqueeze(t, zero) v = Squeeze(u, zero) u2 = Unsqueeze(v, zero) p = Transpose<perm=[0,2,1]>(u2) y = MatMul(x, p)",
    "slice with axes": "u = Slice(t, zero, two, zero) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "slice without axes": "u = Slice(t, zero, two) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "gather": "u = Gather<axis=0>(t, picks) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "gather from the end": "u = Gather<axis=-1>(t, picks) y = MatMul(x, u2) u2 = Gather<axis=0>(u, four)",
    "gather pairs": "u = GatherND(t, pairs) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "concat with a constant": "u = Concat<axis=0>(table, t) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "softmax": "u = Softmax<axis=0>(t) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "layer norm": "u = LayerNormalization<axis=1>(t, b, b) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "reduced": "u = ReduceMean<keepdims=0>(t, zero) y = Add(x, u)",
    "reduced, kept": "u = ReduceSum(t, zero) y = Add(x, u)",
    "gemm after it": "u = Gemm<transB=1>(t, v.weight, b) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "two adapted modules": "u = Relu(t) v = MatMul(u, v.weight) p = Transpose<perm=[1,0]>(v) y = MatMul(x, p)",
    "its own shape": "s = Shape(t) u = Reshape(t, all) v = Reshape(u, s) p = Transpose<perm=[1,0]>(v) y = MatMul(x, p)",
    "part of its shape": "s = Shape<start=1>(t) s2 = Concat<axis=0>(all, s) u = Reshape(t, s2) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "tiled": "u = Tile(t, twice) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "expanded": "u = Unsqueeze(t, zero) v = Expand(u, ones) p = Transpose<perm=[0,2,1]>(v) y = MatMul(x, p)",
    "expanded to the batch": "s = Shape(x) n = Slice(s, zero, one) e = Concat<axis=0>(n, six_four) u = Expand(t, e) p = Transpose<perm=[0,2,1]>(u) y = MatMul(x, p)",
    "tiled to the batch": "s = Shape<start=0, end=1>(x) e = Concat<axis=0>(s, one, one) u = Unsqueeze(t, zero) v = Tile(u, e) p = Transpose<perm=[0,2,1]>(v) y = MatMul(x, p)",
    "heads as DeBERTa has them": (
        "h = Reshape(t, heads) i = Transpose<perm=[1,0,2]>(h) s = Shape<start=0, end=1>(x) e = Concat<axis=0>(s, one, one) "
        "u = Tile(i, e) q = Reshape(x, split) q2 = Transpose<perm=[0,2,1,3]>(q) q3 = Reshape(q2, joined) "
        "p = Transpose<perm=[0,2,1]>(u) y3 = MatMul(q3, p) y = Reshape(y3, back_heads)"
    ),
    "windows": "q = Reshape(x, windows) u = Slice(t, zero, two, zero) m = MatMul(q, w.weight) v = Add(m, u) y = Reshape(v, back4)",
    "product with windows": "q = Reshape(x, windows) p = Transpose<perm=[1,0]>(t) v = MatMul(q, p) y = Reshape(v, back)",
}  # fmt: skip
"""Name → nodes from the projected table ``t`` and the input ``x [batch, n, 4]`` to the output."""

REFUSED = {
    "looked up by the text": "c = Cast<to=7>(x) u = Gather<axis=0>(t, c) y = ReduceSum(u, two)",
    "an operator without rule": "u = CumSum(t, scalar) p = Transpose<perm=[1,0]>(u) y = MatMul(x, p)",
    "an output of its own": "y = Relu(t)",
}

CONSTANTS = {
    "zero": [0], "one": [1], "two": [2], "all": [-1], "twice": [2, 1], "ones": [1, 1, 1], "picks": [3, 0, 3], "four": [0, 1, 2, 0],
    "pairs": [[5], [1], [1]], "six_four": [K, WIDTH], "heads": [K, 2, 2], "split": [0, 0, 2, 2], "joined": [-1, 4, 2],
    "back": [-1, 4, K], "back_heads": [-1, 2, 4, K], "windows": [-1, 2, WIDTH], "back4": [-1, 4, WIDTH], "scalar": 0,
}  # fmt: skip


def graph_of(tail: str, first: str = "t = MatMul(table, w.weight)") -> ir.Model:
    rng = np.random.default_rng(0)
    names = tail.replace("w.weight", "w_weight").replace("v.weight", "v_weight")
    nodes = first.replace("w.weight", "w_weight") + " " + names
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[batch, 4, {WIDTH}] x) => (float y) {{ {nodes} }}'
    made = parser.parse_model(text)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    arrays = {name: np.array(value, np.int64) for name, value in CONSTANTS.items()}
    weights = {"table": (K, WIDTH), "w_weight": (WIDTH, WIDTH), "v_weight": (WIDTH, WIDTH), "b": (WIDTH,)}
    arrays |= {name: rng.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
    used = {name for node in made.graph.node for name in node.input}
    for name in used & arrays.keys():
        made.graph.initializer.append(numpy_helper.from_array(arrays[name], name.replace("_weight", ".weight")))
    for node in made.graph.node:
        node.input[:] = [name.replace("_weight", ".weight") for name in node.input]
    _sort(made)
    return ir.serde.deserialize_model(shape_inference.infer_shapes(made, data_prop=True))


def _sort(model: onnx.ModelProto) -> None:
    """Bring nodes into an order in which every input is computed before it is read."""
    known = {item.name for item in [*model.graph.initializer, *model.graph.input]}
    left, done = list(model.graph.node), []
    while left:
        ready = next(node for node in left if set(node.input) <= known)
        left.remove(ready)
        done.append(ready)
        known.update(ready.output)
    del model.graph.node[:]
    model.graph.node.extend(done)


def adapters_for(model: ir.Model) -> list[Adapter]:
    made = []
    for seed in range(2):
        rng = np.random.default_rng(10 + seed)
        modules = {}
        for path in ("w", "v"):
            if f"{path}.weight" in model.graph.initializers:
                a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, WIDTH), (WIDTH, 2)))
                flip = path == "w" or any(
                    node.op_type == "MatMul" and node.inputs[1].name == "v.weight" for node in model.graph
                )
                modules[path] = LoraModule(path, "linear", a, b, 0.5, fan_in_fan_out=flip)
        made.append(Adapter(modules))
    return made


def run(model: ir.Model, path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def merged(tail: str, adapter: Adapter | None, first: str) -> ir.Model:
    """Return the graph without branches, with the update in its weights."""
    model = graph_of(tail, first)
    for path, module in (adapter.modules if adapter is not None else {}).items():
        value = model.graph.initializers[f"{path}.weight"]
        update = np.float32(module.scale) * module.lora_B @ module.lora_A  # [out, in]
        update = update.T if module.fan_in_fan_out or module.kind == "embedding" else update
        value.const_value = ir.tensor(value.const_value.numpy() + update, name=value.name)
    return model


def branched(tail: str, first: str, adapters: list[Adapter]) -> tuple[ir.Model, LoraInputs]:
    model = graph_of(tail, first)
    return model, insert_branches(model, find_targets(model, adapters, None), base_weights={})


def check(tail: str, adapters: list[Adapter], tmp_path: Path, first: str = "t = MatMul(table, w.weight)") -> None:
    model, inputs = branched(tail, first, adapters)
    types = dict.fromkeys(inputs.names, FLOAT)
    arrays = [adapter_arrays(adapter, inputs, types) for adapter in adapters]
    empty = {name: np.zeros_like(array) for name, array in arrays[0].items()}
    everyone = [*zip(adapters, arrays, strict=True), (None, empty)]
    for rows in (1, 2, 3, 5):
        x = np.random.default_rng(rows).normal(size=(rows, 4, WIDTH)).astype(np.float32)
        expected = [run(merged(tail, adapter, first), tmp_path / "m.onnx", {"x": x}) for adapter, _ in everyone]
        np.testing.assert_array_equal(run(model, tmp_path / "b.onnx", {"x": x}), expected[-1])  # nothing fed
        for (_, fed), want in zip(everyone, expected, strict=True):  # one adapter for all rows
            got = run(model, tmp_path / "b.onnx", {"x": x, **fed})
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        chosen = [(row + rows) % len(everyone) for row in range(rows)]
        mixed = {name: np.concatenate([everyone[number][1][name] for number in chosen]) for name in inputs.names}
        got = run(model, tmp_path / "b.onnx", {"x": x, **mixed})
        for row, number in enumerate(chosen):
            np.testing.assert_allclose(got[row], expected[number][row], rtol=1e-4, atol=1e-4)
    check_runtime(tail, first, adapters, arrays, tmp_path)


def check_runtime(
    tail: str, first: str, adapters: list[Adapter], arrays: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    """The passes of the runtime, which gather adapters by index or merge one into the weights, give the same."""
    x = np.random.default_rng(9).normal(size=(3, 4, WIDTH)).astype(np.float32)
    model, inputs = branched(tail, first, adapters)
    gather_adapters(model, inputs)
    tables = {name: np.concatenate([array[name] for array in arrays]) for name in inputs.names}
    got = run(model, tmp_path / "g.onnx", {"x": x, **tables, ADAPTER_INDICES: np.array([1, 0, 1])})
    want = [run(merged(tail, adapter, first), tmp_path / "m.onnx", {"x": x}) for adapter in adapters]
    for row, number in enumerate((1, 0, 1)):
        np.testing.assert_allclose(got[row], want[number][row], rtol=1e-4, atol=1e-4)
    model, inputs = branched(tail, first, adapters)
    specialize(model, inputs, arrays[1])
    np.testing.assert_allclose(run(model, tmp_path / "s.onnx", {"x": x}), want[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TAILS)
def test_every_row_has_its_own(name: str, tmp_path: Path) -> None:
    check(TAILS[name], adapters_for(graph_of(TAILS[name])), tmp_path)


def test_lookups_that_are_the_same_for_all_rows(tmp_path: Path) -> None:
    """As in a bias for relative positions, which T5 and MPNet look up once for all rows."""
    adapters = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, WIDTH), (WIDTH, 2)))
        adapters.append(Adapter({"w": LoraModule("w", "embedding", a, b, 0.5)}))
    first = "t = Gather<axis=0>(w.weight, four)"
    check("y = Add(x, t)", adapters, tmp_path, first)
    check("p = Unsqueeze(t, zero) u = Transpose<perm=[0,2,1]>(p) y = MatMul(x, u)", adapters, tmp_path, first)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name: str) -> None:
    model = graph_of(REFUSED[name])
    with pytest.raises(AdapterError, match=r"'w' computes something that is the same for all rows .*merge the adapter"):
        insert_branches(model, find_targets(model, adapters_for(model), None), base_weights={})


def test_a_batch_that_is_the_second_axis(tmp_path: Path) -> None:
    """As in XLNet, whose values are ``[tokens, batch, width]``."""
    tail = "q = Transpose<perm=[1,0,2]>(x) m = MatMul(q, w.weight) r = Relu(m) n = MatMul(r, w.weight) y = Transpose<perm=[1,0,2]>(n)"
    check(tail, adapters_for(graph_of(tail)), tmp_path, first="")
