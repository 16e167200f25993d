"""The pooling in a graph computes what PyTorch computes, and what the files of sentence-transformers describe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from rmlora.adapter_task import task_of
from rmlora.errors import AdapterError, CheckpointError, ConfigError, InputError
from rmlora.image_vector import ImageVector
from rmlora.outputs import SentenceVector
from rmlora.pooling import Pooling, PoolingMode, pool, read_pooling, read_text_length
from rmlora.tasks import get_task
from rmlora_converters.graph.passes.pooling import EMBEDDING_NAME, insert_pooling, keep_answer
from rmlora_deploy.bundles.report import Tolerance
from rmlora_deploy.inference.embedder import cosines
from rmlora_deploy.verification.compare import TOLERANCES, compare, mismatch, within
from tests.helpers.encoders import write_modules

WIDTH = 5
TABLE = np.random.default_rng(0).standard_normal((40, WIDTH)).astype(np.float32)


def graph(
    outputs: dict[str, list[str | int]] | None = None,
    *,
    opset: int = 20,
    mask: bool = True,
    kind: int = TensorProto.FLOAT,
) -> ir.Model:
    """Return a graph that looks up a vector per token. Every output holds these, whatever shape it declares."""
    outputs = outputs or {"last_hidden_state": ["rows", "tokens", WIDTH]}
    names = ("input_ids", "attention_mask") if mask else ("input_ids",)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], [name]) for name in outputs]
    lookup = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"]) for name in names],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(TABLE.astype(helper.tensor_dtype_to_np_dtype(kind)), "table")],
    )
    return ir.serde.deserialize_model(
        helper.make_model(lookup, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    )


def embeddings(model: ir.Model, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_outputs()] == [EMBEDDING_NAME]
    given_inputs = {"input_ids": ids, "attention_mask": mask}
    return np.asarray(session.run(None, {item.name: given_inputs[item.name] for item in session.get_inputs()})[0])


@settings(max_examples=25)
@given(
    mode=st.sampled_from(SentenceVector.pooling_modes),
    normalize=st.booleans(),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    left=st.booleans(),
    opset=st.sampled_from([11, 13, 17, 20]),
)
def test_the_graph_pools_as_pytorch_does(
    mode: PoolingMode, normalize: bool, lengths: list[int], left: bool, opset: int
) -> None:
    widest = max(lengths)
    ids = np.random.default_rng(widest).integers(0, 40, (len(lengths), widest))
    mask = np.array([[0] * (widest - n) + [1] * n if left else [1] * n + [0] * (widest - n) for n in lengths])
    pooling = Pooling(mode, normalize)
    model = graph(opset=opset)
    insert_pooling(model, pooling)
    got = embeddings(model, ids, mask)
    expected = pool(torch.from_numpy(TABLE[ids]), torch.from_numpy(mask), pooling).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    for row, length in enumerate(lengths):  # by the definition, on the row's own tokens
        tokens = TABLE[ids[row, -length:] if left else ids[row, :length]]
        first = TABLE[ids[row, 0]]
        alone = {"mean": tokens.mean(0), "cls": first, "last": tokens[-1]}[mode]
        alone = alone / np.linalg.norm(alone) if normalize else alone
        np.testing.assert_allclose(got[row], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_that_the_exporter_pooled_are_normalized_as_asked(normalize: bool) -> None:
    ready = graph({EMBEDDING_NAME: ["rows", WIDTH]})
    for value in ready.graph.inputs:
        value.shape = ir.Shape(["rows"])  # one token per text: what is looked up is the text's vector
    insert_pooling(ready, Pooling(normalize=normalize))
    ids = np.array([3, 8, 20])
    got = embeddings(ready, ids, np.ones_like(ids))
    lengths = np.linalg.norm(TABLE[ids], axis=-1, keepdims=True)
    np.testing.assert_allclose(got, TABLE[ids] / (lengths if normalize else 1.0), rtol=1e-5)


def test_the_embedding_output_is_found_in_graphs_of_any_exporter() -> None:
    tokens: list[str | int] = ["rows", "tokens", WIDTH]
    pooler: list[str | int] = ["rows", WIDTH]
    assert keep_answer(graph({"pooler_output": pooler, "last_hidden_state": tokens})).name == "last_hidden_state"
    assert keep_answer(graph({"output_1": pooler, "output_0": tokens})).name == "output_0"
    ready = graph({"token_embeddings": tokens, EMBEDDING_NAME: pooler})
    insert_pooling(ready, Pooling(normalize=False))
    assert [node.op_type for node in ready.graph] == ["Gather"]  # pooled by its exporter already
    alone = graph({"pooled": pooler})
    assert keep_answer(alone).name == EMBEDDING_NAME
    with pytest.raises(InputError, match="outputs are one, two, and none is known to hold the token vectors"):
        keep_answer(graph({"one": tokens, "two": tokens}))


MAP, TOKENS = ("rows", WIDTH, 2, 4), ("rows", 3, WIDTH)


@pytest.mark.parametrize("opset", [11, 20])
@pytest.mark.parametrize(
    ("shape", "pooling"),
    [
        (MAP, Pooling("mean")),
        (TOKENS, Pooling("mean")),
        (TOKENS, Pooling("mean", normalize=False)),
        (TOKENS, Pooling("cls")),
    ],
)
def test_rows_without_padding_are_pooled_without_a_mask(
    shape: tuple[str | int, ...], pooling: Pooling, opset: int
) -> None:
    given_shape = [2, *map(int, shape[1:])]
    hidden = torch.from_numpy(np.random.default_rng(1).standard_normal(given_shape).astype(np.float32))
    got = _of_hidden({"last_hidden_state": hidden.numpy()}, {"last_hidden_state": shape}, pooling, opset)
    expected = ImageVector().of_model(_Output(last_hidden_state=hidden), {}, pooling)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "sides"),
    [("image_embeds", ()), ("pooler_output", ()), ("pooler_output", (1, 1)), ("sentence_embedding", ())],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_what_an_image_model_pools_itself_is_taken(name: str, normalize: bool, sides: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    pooled = rng.standard_normal((2, WIDTH, *sides)).astype(np.float32)
    others = rng.standard_normal((2, 3, WIDTH)).astype(np.float32)
    shapes = {"last_hidden_state": ("rows", 3, WIDTH), name: ("rows", WIDTH, *sides)}
    got = _of_hidden({"last_hidden_state": others, name: pooled}, shapes, Pooling("pooler", normalize), 20)
    flat = pooled.reshape(2, WIDTH)
    np.testing.assert_allclose(
        got, flat / np.linalg.norm(flat, axis=1, keepdims=True) if normalize else flat, rtol=1e-5
    )


def test_a_graph_without_pooled_vectors_says_so() -> None:
    with pytest.raises(InputError, match="none is known to hold vectors that the model pools itself"):
        keep_answer(graph(), Pooling("pooler"))


class _Output(dict[str, torch.Tensor]):
    __getattr__ = dict.__getitem__


def _of_hidden(
    values: dict[str, np.ndarray], shapes: dict[str, tuple[str | int, ...]], pooling: Pooling, opset: int
) -> np.ndarray:
    """Return what a graph makes of the outputs of an image model, which are its inputs."""
    infos = [
        [helper.make_tensor_value_info(kind + name, TensorProto.FLOAT, shapes[name]) for name in values]
        for kind in ("given_", "")
    ]
    nodes = [helper.make_node("Identity", [f"given_{name}"], [name]) for name in values]
    made = helper.make_model(
        helper.make_graph(nodes, "g", *infos), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )
    model = ir.serde.deserialize_model(made)
    insert_pooling(model, pooling, padded=False)
    (output,) = model.graph.outputs
    assert output.name == EMBEDDING_NAME and output.shape == ["rows", WIDTH]
    onnx_model = ir.serde.serialize_model(model)
    onnx.checker.check_model(onnx_model)
    session = ort.InferenceSession(onnx_model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {f"given_{name}": value for name, value in values.items()})[0])


def test_what_cannot_be_pooled_is_refused_and_half_precision_is_summed_in_float32() -> None:
    with pytest.raises(InputError, match="takes no 'attention_mask', so padding would count as text"):
        insert_pooling(graph(mask=False), Pooling("mean"))
    insert_pooling(graph(mask=False), Pooling("cls"))
    half = graph(kind=TensorProto.FLOAT16)
    insert_pooling(half, Pooling())
    ids, mask = np.array([[1, 2, 3]]), np.ones((1, 3), np.int64)
    assert embeddings(half, ids, mask).dtype == np.float32


FORMS: list[tuple[dict[str, object], PoolingMode]] = [
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}, "mean"),
    ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
    ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
    ({"pooling_mode": "lasttoken"}, "last"),
    ({"pooling_mode": ["mean"]}, "mean"),
]


@pytest.mark.parametrize(("config", "mode"), FORMS)
def test_sentence_transformers_files_are_read(config: dict[str, object], mode: PoolingMode, tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None
    assert read_pooling(write_modules(tmp_path, config)) == Pooling(mode, normalize=False)
    assert read_pooling(write_modules(tmp_path, config, more=["Normalize"])) == Pooling(mode, normalize=True)
    assert read_text_length(tmp_path) is None
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": false}')
    assert read_text_length(tmp_path) == 256


def test_other_kinds_of_pooling_are_refused(tmp_path: Path) -> None:
    both: dict[str, object] = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    with pytest.raises(CheckpointError, match="pooling_mode_mean_tokens and pooling_mode_max_tokens, but this program"):
        read_pooling(write_modules(tmp_path, both))
    with pytest.raises(CheckpointError, match="asks for weightedmean"):
        read_pooling(write_modules(tmp_path, {"pooling_mode": "weightedmean"}))
    with pytest.raises(CheckpointError, match="has a module 'Dense'"):
        read_pooling(write_modules(tmp_path, {"pooling_mode": "mean"}, more=["Dense"]))
    (tmp_path / "modules.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match="it is damaged"):
        read_pooling(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_pooling(tmp_path)


def test_vectors_are_compared_by_cosine_and_never_by_choice() -> None:
    vectors = get_task("feature-extraction").outputs
    expected = [np.array([[3.0, 4.0], [1.0, 0.0]])]
    same = compare(expected, expected, vectors)
    assert (same.argmax_agreement, same.min_cosine) == (None, 1.0)
    assert within(same, TOLERANCES["fp32"])
    turned = compare(expected, [np.array([[3.0, 4.0], [0.8, 0.6]])], vectors)
    assert turned.min_cosine == pytest.approx(0.8)
    assert not within(turned, TOLERANCES["int8"])
    limit = Tolerance(relative_error=9.0, rms_error=9.0, agreement=0.9, cosine=0.97, metric_loss=0.0)
    message = mismatch(turned, limit)
    assert message is not None and "least cosine of an input's two vectors is 0.800000 (at least 0.97)" in message
    assert mismatch(same, limit) is None
    assert not within(compare(expected, [np.full((2, 2), np.nan)], vectors), TOLERANCES["int4"])
    np.testing.assert_allclose(cosines(np.array([[3, 4], [4, 3], [0, 0]], np.float32))[0], [1.0, 0.96, 0.0])


def test_an_adapters_task_is_known_or_an_error() -> None:
    from rmlora.adapter import Adapter

    vectors = get_task("feature-extraction")
    embedding = Adapter({}, peft_config={"task_type": "FEATURE_EXTRACTION"}, source="e")
    assert task_of(embedding) == vectors
    assert vectors.outputs.labels_of(embedding, {}) == []
    assert task_of(Adapter({}), "feature-extraction") == vectors
    with pytest.raises(ConfigError, match="does not say which task it is for: pass --task"):
        task_of(Adapter({}, source="unknown"))
    classifier = Adapter({}, peft_config={"task_type": "SEQ_CLS"}, source="c")
    with pytest.raises(AdapterError, match="c is for text-classification and cannot be used for feature-extraction"):
        task_of(classifier, "feature-extraction")
    with pytest.raises(AdapterError, match="e is for feature-extraction and cannot be used for text-classification"):
        task_of(embedding, "text-classification")
    headed = Adapter({}, modules_to_save={"classifier.weight": np.zeros((2, 4))}, source="h")
    with pytest.raises(AdapterError, match=r"h contains 'classifier.weight', the head of a classification adapter"):
        task_of(headed, "feature-extraction")
