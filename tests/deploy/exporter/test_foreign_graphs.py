"""Branches and merges work in graphs that other people exported, quantized and fused, or the refusal says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from transformers import BertForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification

from rmlora_deploy import load
from tests.helpers.bundles import LABELS
from tests.helpers.cli import fails, run, tokenizer
from tests.helpers.exports import anonymous, with_bias
from tests.helpers.foreign_graphs import FORMS, export_legacy
from tests.helpers.models import TOKENS, adapt, build, lora_config, save_adapter, save_base

TEXTS = ["w1 w2 w3 w4 w5", "w7", "w9 w2 w2 w2 w2 w2 w2 w2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base, two adapters of different ranks, and an export of the base with opset 17."""
    directory = tmp_path_factory.mktemp("foreign")
    model = with_bias("bert")
    with torch.no_grad():  # values that float16 cannot hold, as every trained embedding has
        model.bert.encoder.layer[0].attention.self.query.weight[0, :4] = torch.tensor([1e-9, -1e-9, 3e-8, 0.0])
    base = save_base(model, directory / "base")
    tokenizer().save_pretrained(base)
    for name, rank in (("small", 2), ("large", 5)):
        config = lora_config("bert", r=rank)
        adapter = save_adapter(adapt(build("bert"), config, size=0.3, seed=rank), directory / name)
        (adapter / "rmlora.json").unlink(missing_ok=True)
    export_legacy(model, directory / "model.onnx")
    return directory


def exported(made: Path, graph: Path, output: Path, *more: object) -> dict:
    words = ["export", made / "base", "--mode", "branches", "--onnx", graph, "-o", output, "--json", *more]
    done = run(*words, "-a", f"small={made / 'small'}", "-a", f"large={made / 'large'}")
    assert done.code == 0, done.stderr
    return dict(json.loads(done.stdout))


def check(manifest: dict, tolerance: float) -> None:
    """Every adapter and the mixed batch agree with PEFT within ``tolerance``, and the base is the given graph."""
    results = manifest["verification"]
    compared = [value for value in json_values(results) if isinstance(value, dict) and "max_relative_error" in value]
    assert len(compared) >= 3
    assert max(value["max_relative_error"] for value in compared) < tolerance


def json_values(value: object) -> list[object]:
    """Return every dictionary inside ``value``."""
    if isinstance(value, dict):
        return [value, *[inner for item in value.values() for inner in json_values(item)]]
    return [inner for item in value for inner in json_values(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 16])
def test_old_operator_sets(made: Path, tmp_path: Path, opset: int) -> None:
    graph = export_legacy(with_bias_of(made), tmp_path / "old.onnx", opset=opset)
    check(exported(made, graph, tmp_path / "bundle"), 1e-5)
    written = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False)
    assert next(item.version for item in written.opset_import if item.domain == "") == opset
    onnx.checker.check_model(str(tmp_path / "bundle" / "model.onnx"), full_check=True)


def with_bias_of(made: Path) -> BertForSequenceClassification:
    return BertForSequenceClassification.from_pretrained(made / "base")


def test_an_operator_set_that_is_too_old_is_refused(made: Path, tmp_path: Path) -> None:
    model = onnx.load(made / "model.onnx")
    model.opset_import[0].version = 10
    onnx.save(model, tmp_path / "old.onnx")
    words = ("export", made / "base", "--mode", "branches", "-a", f"x={made / 'small'}", "-o", tmp_path / "bundle")
    fails(3, "has opset 10, and opset 11 is the oldest", *words, "--onnx", tmp_path / "old.onnx")


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        ("weights as constants", 1e-5), ("weights as inputs", 1e-5), ("int32 inputs", 1e-5), ("fp16", 2e-2),
        ("int8", 0.2), ("uint8 per channel", 0.2), ("fused attention", 1e-5),
        ("fused attention alone", 1e-5), ("weights stored in fp16", 2e-2), ("weights stored in float64", 1e-5),
    ],
)  # fmt: skip
def test_forms_of_a_graph(made: Path, tmp_path: Path, form: str, tolerance: float) -> None:
    graph = Path(shutil.copy(made / "model.onnx", tmp_path / "model.onnx"))
    FORMS[form](graph)
    check(exported(made, graph, tmp_path / "bundle"), tolerance)
    model = load(tmp_path / "bundle")
    assert model.predict(TEXTS, "small") != model.predict(TEXTS, "large")


def test_a_static_quantization_says_what_to_do(made: Path, tmp_path: Path) -> None:
    graph = Path(shutil.copy(made / "model.onnx", tmp_path / "model.onnx"))
    FORMS["static int8"](graph)
    words = ("export", made / "base", "--mode", "branches", "-a", f"x={made / 'small'}", "-o", tmp_path / "bundle")
    fails(3, "insert branches into the floating-point graph this one was made from", *words, "--onnx", graph)
    assert not (tmp_path / "bundle").exists()


def test_a_fixed_batch_says_what_to_do(made: Path, tmp_path: Path) -> None:
    graph = export_legacy(with_bias_of(made), tmp_path / "fixed.onnx", fixed=True)
    words = ("export", made / "base", "--mode", "branches", "-a", f"x={made / 'small'}", "-o", tmp_path / "bundle")
    fails(3, "has the shape [2, 8], so it takes 2 rows and no other", *words, "--onnx", graph)


def test_a_fixed_number_of_tokens_says_what_to_do(made: Path, tmp_path: Path) -> None:
    model = onnx.load(made / "model.onnx")
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].Clear()
        value.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(model, tmp_path / "fixed.onnx")
    fails(3, "so it takes 8 tokens and no other number: export it with a variable sequence axis",
          *words_for(made, tmp_path / "fixed.onnx", tmp_path / "bundle"))  # fmt: skip


def words_for(made: Path, graph: Path, output: Path) -> list[object]:
    return ["export", made / "base", "--mode", "branches", "-a", f"x={made / 'small'}", "-o", output, "--onnx", graph]


def test_probabilities_instead_of_scores_are_refused(made: Path, tmp_path: Path) -> None:
    model = onnx.load(made / "model.onnx")
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1))
    model.graph.output[0].name = "probabilities"
    onnx.save(model, tmp_path / "softmax.onnx")
    fails(3, "is a Softmax of the scores, but adapters need the scores themselves",
          *words_for(made, tmp_path / "softmax.onnx", tmp_path / "bundle"))  # fmt: skip


def test_a_graph_without_a_mask_is_refused(made: Path, tmp_path: Path) -> None:
    """PyTorch without a mask computes the same, so a comparison would pass, and padding would change the answers."""
    model = onnx.load(made / "model.onnx")
    shape = onnx.helper.make_node("Shape", ["input_ids"], ["shape"])
    one = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    ones = onnx.helper.make_node("ConstantOfShape", ["shape"], ["attention_mask"], value=one)
    nodes = [shape, ones, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input.remove(next(value for value in model.graph.input if value.name == "attention_mask"))
    onnx.save(model, tmp_path / "unmasked.onnx")
    fails(3, "takes no attention_mask, so the answer of a text would depend on the longer texts in its batch",
          *words_for(made, tmp_path / "unmasked.onnx", tmp_path / "bundle"))  # fmt: skip


def test_inputs_of_other_names_are_named(made: Path, tmp_path: Path) -> None:
    model = onnx.load(made / "model.onnx")
    for node in model.graph.node:
        node.input[:] = ["ids" if name == "input_ids" else name for name in node.input]
    next(value for value in model.graph.input if value.name == "input_ids").name = "ids"
    onnx.save(model, tmp_path / "renamed.onnx")
    fails(3, "takes 'ids', which the base's tokenizer does not make: it makes attention_mask, input_ids",
          *words_for(made, tmp_path / "renamed.onnx", tmp_path / "bundle"))  # fmt: skip


def test_a_merged_graph_that_nothing_can_load_is_not_written(made: Path, tmp_path: Path) -> None:
    model = onnx.load(made / "model.onnx")
    model.graph.node.append(onnx.helper.make_node("Unheard", ["logits"], ["more"], domain="nowhere"))
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    onnx.save(model, tmp_path / "model.onnx")
    words = ("merge", made / "base", made / "large", "--onnx", tmp_path / "model.onnx", "-o", tmp_path / "merged")
    fails(6, "The merged graph is of no use here: ONNX Runtime cannot load model.onnx", *words)
    assert not (tmp_path / "merged").exists()
    (tmp_path / "empty.onnx").write_bytes(b"xx" * 100)
    words = ("merge", made / "base", made / "large", "--onnx", tmp_path / "empty.onnx", "-o", tmp_path / "merged")
    fails(3, "empty.onnx does not say which ONNX operator set it uses", *words, "--no-verify")


def test_the_scores_are_found_among_other_outputs(made: Path, tmp_path: Path) -> None:
    graph = export_legacy(with_bias_of(made), tmp_path / "hidden.onnx", hidden=True)
    check(exported(made, graph, tmp_path / "found"), 1e-5)
    named = onnx.load(graph)
    for node in named.graph.node:
        node.output[:] = ["a" if name == "logits" else name for name in node.output]
    named.graph.output[1].name = "a"
    onnx.save(named, graph)
    check(exported(made, graph, tmp_path / "by_shape"), 1e-5)
    check(exported(made, graph, tmp_path / "by_name", "--output-name", "a"), 1e-5)
    words = ("export", made / "base", "--mode", "branches", "-a", f"x={made / 'small'}", "-o", tmp_path / "bundle")
    fails(3, "has no output called 'logits': its outputs are last_hidden_state ", *words, "--onnx", graph,
          "--output-name", "logits")  # fmt: skip
    fails(3, "does not hold one row of scores per input", *words, "--onnx", graph, "--output-name",
          "last_hidden_state")  # fmt: skip
    fails(2, "--output-name chooses an output of a graph that you give with --onnx", *words, "--output-name", "a")


@pytest.mark.parametrize(
    "form",
    ["weights as constants", "int32 inputs", "fp16", "weights stored in fp16", "weights stored in float64", None],
)
def test_merging_into_such_a_graph(made: Path, tmp_path: Path, form: str | None) -> None:
    graph = Path(shutil.copy(made / "model.onnx", tmp_path / "model.onnx"))
    if form is None:
        export_legacy(with_bias_of(made), graph, hidden=True)
    else:
        FORMS[form](graph)
    done = run("merge", made / "base", made / "large", "--onnx", graph, "-o", tmp_path / "merged", "--json")
    assert done.code == 0, done.stderr
    verification = json.loads(done.stdout)["verification"]
    assert verification["passed"], verification
    assert verification["onnx"]["max_relative_error"] < (2e-2 if form and "fp16" in form else 1e-5)


def test_merging_into_a_quantized_graph_is_refused(made: Path, tmp_path: Path) -> None:
    graph = Path(shutil.copy(made / "model.onnx", tmp_path / "model.onnx"))
    FORMS["int8"](graph)
    words = ("merge", made / "base", made / "large", "--onnx", graph, "-o", tmp_path / "merged")
    fails(3, "use the floating-point graph, and quantize the result", *words)


def test_token_types_that_the_tokenizer_does_not_make(made: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(made / "base", tmp_path / "base"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    assert "token_type_ids" not in config.get("model_input_names", [])
    check(exported(made, made / "model.onnx", tmp_path / "bundle"), 1e-5)


def test_token_types_that_the_model_does_not_take(tmp_path: Path) -> None:
    model = DistilBertForSequenceClassification(
        DistilBertConfig(**TOKENS, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=len(LABELS))
    )
    base = save_base(model, tmp_path / "base")
    made_by = tokenizer()
    made_by.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    made_by.save_pretrained(base)
    adapter = save_adapter(adapt(model, lora_config("distilbert"), size=0.3), tmp_path / "adapter")
    done = run("export", base, "-a", adapter, "-o", tmp_path / "bundle", "--task", "text-classification")
    assert done.code == 0, done.stderr


def test_the_input_of_a_bert_with_other_names(made: Path, tmp_path: Path) -> None:
    """Weights are found by content where every name is gone, also in half precision and in 8 bits."""
    graph = Path(shutil.copy(made / "model.onnx", tmp_path / "model.onnx"))
    FORMS["fp16"](graph)
    check(exported(made, anonymous(graph), tmp_path / "bundle"), 2e-2)
