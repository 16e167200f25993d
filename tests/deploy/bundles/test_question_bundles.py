"""Bundles that answer questions: merged, with adapters chosen row by row, and of a graph with two outputs, compared with PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from rmlora.errors import ConfigError, InputError
from rmlora.inputs import Arrays
from rmlora_deploy import Answerer, Bundle, export, load, verify
from tests.helpers.cli import fails, run, run_process
from tests.helpers.questions import LONG, PAIRS, make_question_adapter, make_question_base, question_rows
from tests.helpers.taggers import write_rows

NAMES = ("one", "two")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base without head, two adapters as plain PEFT writes them, and bundles of them."""
    directory = tmp_path_factory.mktemp("questions")
    base = make_question_base(directory / "base")
    for number, name in enumerate(NAMES):
        make_question_adapter(base, directory / name, rank=4 - 2 * number, seed=number)
    export(base, directory / "one", directory / "merged")
    export(base, {name: directory / name for name in NAMES}, directory / "both")
    return directory


def peft_model(made: Path, name: str) -> Any:
    base = AutoModelForQuestionAnswering.from_pretrained(made / "base")
    return PeftModel.from_pretrained(base, str(made / name)).eval()


def peft_scores(made: Path, name: str, batch: Arrays) -> np.ndarray:
    """Return PEFT's scores ``[rows, tokens, 2]``."""
    with torch.inference_mode():
        output = peft_model(made, name)(**{key: torch.from_numpy(array) for key, array in batch.items()})
    return torch.stack([output.start_logits, output.end_logits], -1).numpy()


def test_rows_of_one_batch_have_their_own_adapters(made: Path) -> None:
    bundle = Bundle.open(made / "both")
    session, batch = bundle.adapter_session(), bundle.preprocessor()(PAIRS)
    names = ["one", "two", "two", "one"]
    mixed = session.run(batch, names)
    for row, (name, output) in enumerate(zip(names, mixed, strict=True)):
        length = int(batch["attention_mask"][row].sum())
        single = session.run({key: array[row : row + 1] for key, array in batch.items()}, name)[0]
        np.testing.assert_array_equal(output, single)  # bit for bit
        np.testing.assert_allclose(output[:length], peft_scores(made, name, batch)[row][:length], atol=1e-4)


def test_the_graph_keeps_the_projection_whole(made: Path) -> None:
    graph = ir.load(made / "merged" / "model.onnx").graph
    assert [value.name for value in graph.outputs] == ["logits"]
    assert not {"Split", "Concat", "Squeeze"} & {node.op_type for node in list(graph)[-5:]}


@pytest.mark.parametrize("kind", ["merged", "both"])
def test_the_answer_is_that_of_all_windows(kind: str, made: Path) -> None:
    answerer: Any = load(made / kind)
    assert isinstance(answerer, Answerer)
    tokenizer, model = AutoTokenizer.from_pretrained(made / "base"), peft_model(made, "one")
    for (question, context), found in zip(
        PAIRS, answerer.answer(PAIRS, "one" if kind == "both" else None, top=3), strict=True
    ):
        encoded = tokenizer(
            question, context, truncation="only_second", max_length=40, stride=(37 - len(tokenizer.tokenize(question))) // 2,
            return_overflowing_tokens=True, return_offsets_mapping=True, padding=True, return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode():
            output = model(**{name: encoded[name] for name in tokenizer.model_input_names})
        best = 0.0
        for row, (starts, ends) in enumerate(zip(output.start_logits, output.end_logits, strict=True)):
            inside = torch.tensor([index == 0 or source == 1 for index, source in enumerate(encoded.sequence_ids(row))])
            begins, stops = (side.masked_fill(~inside, -torch.inf).softmax(0) for side in (starts, ends))
            joint = torch.outer(begins, stops).triu().tril(29)
            joint[0], joint[:, 0] = 0, 0
            best = max(best, float(joint.max()))
        assert found[0].score == pytest.approx(best, rel=1e-3)
        assert [answer.score for answer in found] == sorted((answer.score for answer in found), reverse=True)
        assert all(answer.text == context[answer.start : answer.end] != "" for answer in found)


def test_no_answer_is_given_where_it_is_allowed(made: Path) -> None:
    answerer: Any = load(made / "both")
    every = answerer.answer(PAIRS, "one", top=5000, no_answer=True)
    assert all(sum(not answer.text for answer in answers) == 1 for answers in every)
    assert not any(not answer.text for answers in answerer.answer(PAIRS, "one", top=5000) for answer in answers)


def test_what_cannot_be_answered(made: Path) -> None:
    answerer: Any = load(made / "both")
    with pytest.raises(InputError, match="put a single one into a list"):
        answerer.answer("which lamp?")
    with pytest.raises(InputError, match="input 1 is a single text: give two texts"):
        answerer.answer(["which lamp?"], "one")
    with pytest.raises(ConfigError, match="must be at least 1"):
        answerer.answer(PAIRS, "one", top=0)
    from rmlora_deploy import Tagger

    with pytest.raises(ConfigError, match="is for question-answering and tags no words"):
        Tagger.open(made / "both")
    with pytest.raises(ConfigError, match="has none to name"):
        export(made / "base", made / "one", made / "no", labels=["a", "b"])


def test_predict_prints_answers(made: Path) -> None:
    done = run("predict", made / "both", "-a", "two", "--pair", "which light?", LONG, "--top", "2", "--json")
    assert done.code == 0, done.stderr
    (row,) = json.loads(done.stdout)
    answerer: Any = load(made / "both")
    want = [(found.text, found.start) for found in answerer.answer([("which light?", LONG)], "two", top=2)[0]]
    assert [(item["text"], item["start"]) for item in row["answers"]["two"]] == want
    shown = run("predict", made / "merged", "--pair", *PAIRS[0])
    assert shown.code == 0 and "which lamp is on?" in shown.stdout and "%" in shown.stdout
    fails(3, "was trained on pairs of texts", "predict", made / "merged", "which lamp?")


def test_verify_measures_answers_for_pytorch_and_the_graph(made: Path, tmp_path: Path) -> None:
    rows = [*question_rows(6), {"question": "which light?", "context": LONG, "answers": "desk lamp"}]
    data = str(write_rows(tmp_path / "test.jsonl", rows))
    report = verify(made / "merged", data=data, record=False)
    assert report.evaluation is not None and report.evaluation.metric == "answer F1"
    assert report.evaluation.pytorch == report.evaluation.onnx and report.evaluation.examples == 7
    details = report.evaluation.details
    kinds = (details.with_answer, details.without_answer) if details is not None else ()
    assert sum(kind.examples for kind in kinds if kind is not None) == 7
    bad = write_rows(tmp_path / "bad.jsonl", [{**rows[0], "answers": "chair"}])
    fails(3, "does not occur in its context", "verify", made / "merged", "--data", bad)


def test_a_graph_with_two_outputs_is_taken(made: Path, tmp_path: Path) -> None:
    """Optimum and transformers' own exporters give the scores of beginnings and of ends one by one."""
    from rmlora.tasks import get_task
    from rmlora_deploy.exporter.torch_export import export_torch
    from rmlora_deploy.exporter.trace_inputs import trace_inputs

    base = make_question_base(tmp_path / "base", head=True)
    model: Any = AutoModelForQuestionAnswering.from_pretrained(base).eval()
    task = get_task("question-answering")
    inputs = trace_inputs(task, model.config, task.inputs.load_processor(base))
    graph = export_torch(model, inputs, outputs=["start_logits", "end_logits"])
    ir.save(graph, tmp_path / "two.onnx")
    bundle = export(base, {"one": made / "one"}, tmp_path / "bundle", onnx=tmp_path / "two.onnx")
    assert bundle.manifest.verification is not None and bundle.manifest.verification.passed
    own, both = load(tmp_path / "bundle"), load(made / "both")
    assert isinstance(own, Answerer) and isinstance(both, Answerer)
    for one, other in zip(own.answer(PAIRS, "one"), both.answer(PAIRS, "one"), strict=True):
        assert (one[0].text, one[0].score) == (other[0].text, pytest.approx(other[0].score, rel=1e-3))
    done = run("merge", base, made / "one", "--onnx", tmp_path / "two.onnx", "-o", tmp_path / "merged.onnx")
    assert done.code == 0 and "Compared with PyTorch" in done.stdout, done.stdout + done.stderr


def test_without_torch_it_answers(made: Path) -> None:
    done = run_process(
        "predict", made / "both", "-a", "one", "--pair", *PAIRS[2], "--json", without=("torch", "transformers", "peft")
    )
    assert done.code == 0, done.stderr
    answerer: Any = load(made / "both")
    (want,) = answerer.answer([PAIRS[2]], "one")[0]
    assert json.loads(done.stdout)[0]["answers"]["one"][0]["start"] == want.start


def test_without_a_recorded_length_texts_are_cut_to_what_the_graph_reads(tmp_path: Path) -> None:
    base = make_question_base(tmp_path / "base", positions=120)
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 10**30}))
    adapter = make_question_adapter(base, tmp_path / "foreign")
    for mode in ("merged", "branches"):
        bundle = export(base, {"x": adapter}, tmp_path / mode, mode=mode, verify=False)
        assert bundle.manifest.max_length == 120
        assert [entry.max_length for entry in bundle.adapters.values()] == [120] * (mode == "branches")
        answerer: Any = load(tmp_path / mode)
        ((found, *_),) = answerer.answer([("which light?", 3 * LONG)], *(["x"] if mode == "branches" else []))
        assert (3 * LONG)[found.start : found.end] == found.text
