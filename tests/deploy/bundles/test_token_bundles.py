"""Bundles that label tokens: merged and with adapters of different labels, compared with PEFT and transformers' pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification

from rmlora.errors import AdapterError, ConfigError
from rmlora.inputs import Arrays
from rmlora_deploy import Bundle, Tagger, export, load, verify
from tests.helpers.cli import fails, run, run_process
from tests.helpers.taggers import (
    ROOMS,
    SLOTS,
    TEXTS,
    make_tag_adapter,
    make_tag_base,
    pipeline_entities,
    tag_rows,
    write_rows,
)

LABELS = {"slots": SLOTS, "rooms": ROOMS}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base without head, two adapters as plain PEFT writes them, and bundles of them."""
    directory = tmp_path_factory.mktemp("tokens")
    base = make_tag_base(directory / "base")
    for number, (name, labels) in enumerate(LABELS.items()):
        adapter = make_tag_adapter(base, directory / name, labels, rank=4 - 2 * number, seed=number)
        export(base, adapter, directory / f"{name}-merged", labels=labels)
    adapters = {name: directory / name for name in LABELS}
    export(base, adapters, directory / "both")
    return directory


def peft_scores(made: Path, name: str, batch: Arrays) -> np.ndarray:
    """Return PEFT's scores ``[rows, tokens, labels]``."""
    base = AutoModelForTokenClassification.from_pretrained(made / "base", num_labels=len(LABELS[name]))
    model = PeftModel.from_pretrained(base, str(made / name)).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(**{key: torch.from_numpy(array) for key, array in batch.items()}).logits
    return logits.numpy()


def test_rows_of_one_batch_have_their_own_adapters_and_labels(made: Path) -> None:
    bundle = Bundle.open(made / "both")
    session, batch = bundle.adapter_session(), bundle.preprocessor()(TEXTS)
    names = ["slots", "rooms", "rooms", "slots"]
    mixed = session.run(batch, names)
    for row, (name, output) in enumerate(zip(names, mixed, strict=True)):
        length = int(batch["attention_mask"][row].sum())
        assert output.shape == (batch["input_ids"].shape[1], len(LABELS[name]))
        single = session.run({key: array[row : row + 1] for key, array in batch.items()}, name)[0]
        np.testing.assert_array_equal(output, single)  # bit for bit
        expected = peft_scores(made, name, batch)[row]
        np.testing.assert_allclose(output[:length], expected[:length], atol=1e-4)


def test_padding_never_counts(made: Path) -> None:
    bundle = Bundle.open(made / "both")
    report = bundle.manifest.verification
    assert report is not None and report.passed and report.mixed is not None
    outputs = bundle.task.outputs
    batch = bundle.preprocessor()(TEXTS)
    scores = peft_scores(made, "slots", batch)
    spoiled = np.where(batch["attention_mask"][..., None] == 0, np.nan, scores)
    tokens = int(batch["attention_mask"].sum())
    assert outputs.without_padding(spoiled, batch).shape == (tokens, len(SLOTS))
    assert np.isfinite(outputs.without_padding(spoiled, batch)).all()
    assert np.isfinite(outputs.padding_zeroed(spoiled, batch)).all()


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("strategy", ["first", "simple"])
def test_entities_are_those_of_transformers_pipeline(name: str, strategy: Any, made: Path) -> None:
    both, merged = load(made / "both"), load(made / f"{name}-merged")
    assert isinstance(both, Tagger) and isinstance(merged, Tagger)
    named = {f"LABEL_{number}": label for number, label in enumerate(LABELS[name])}
    assert len({item.label for answer in merged.tag(TEXTS) for item in answer.entities}) == (len(LABELS[name]) - 1) / 2
    for tagger, choice in ((both, name), (merged, None)):
        for text, answer in zip(TEXTS, tagger.tag(TEXTS, choice, aggregation=strategy), strict=True):
            labels = [*named] if tagger is both else LABELS[name]  # plain PEFT records no names
            expected = pipeline_entities(made / "base", made / name, labels, text, strategy)
            got = [(item.label, item.start, item.end) for item in answer.entities]
            assert got == [item[:3] for item in expected], text
            np.testing.assert_allclose([i.score for i in answer.entities], [i[3] for i in expected], atol=1e-5)
            assert all(item.text == text[item.start : item.end] for item in answer.entities)
            assert answer.unread_from is None and all(item.words is None for item in answer.entities)


def test_given_words_are_named_by_their_index(made: Path) -> None:
    tagger: Any = load(made / "slots-merged")
    given = [text.split() for text in TEXTS] + [["turn", "the desk", "lamps"]]
    answers = tagger.tag(given)
    assert [answer.text for answer in answers] == [*TEXTS, "turn the desk lamps"]
    found = [(words, item) for words, answer in zip(given, answers, strict=True) for item in answer.entities]
    assert found
    for words, item in found:
        assert item.text == " ".join(words[slice(*item.words)])


def test_where_a_text_was_cut_is_said(made: Path) -> None:
    tagger: Any = load(made / "slots-merged")
    text = "turn the lamp on " * 20
    (answer,) = tagger.tag([text])
    assert answer.unread_from is not None and text[answer.unread_from :].startswith(("turn", "the", "lamp", "on"))
    done = run("predict", made / "slots-merged", text)
    assert done.code == 0 and f"from character {answer.unread_from} on." in " ".join(done.stderr.split())


def test_what_tag_refuses(made: Path) -> None:
    tagger: Any = load(made / "both")
    with pytest.raises(ConfigError, match="choose first or simple"):
        tagger.tag(TEXTS, "slots", aggregation="max")
    with pytest.raises(ConfigError, match="takes a list of texts"):
        tagger.tag("turn on", "slots")
    from rmlora_deploy import Classifier

    with pytest.raises(ConfigError, match="is for token-classification and classifies nothing"):
        Classifier.open(made / "both")
    with pytest.raises(AdapterError, match="is for token-classification and cannot be used for text-classification"):
        export(made / "base", made / "slots", made / "no", task="text-classification")


def test_predict_prints_entities(made: Path, tmp_path: Path) -> None:
    asked = [made / "both", "-a", "slots", "-a", "rooms", *TEXTS]
    done = run("predict", *asked, "--json")
    assert done.code == 0, done.stderr
    rows = json.loads(done.stdout)
    tagger: Any = load(made / "both")
    for name in LABELS:
        for row, answer in zip(rows, tagger.tag(TEXTS, name), strict=True):
            got = [(item["label"], item["start"], item["end"], item["text"]) for item in row["answers"][name]]
            assert got == [(item.label, item.start, item.end, item.text) for item in answer.entities]
    shown = run("predict", *asked)
    assert shown.code == 0 and "rooms" in shown.stdout and "%" in shown.stdout
    (tmp_path / "words.jsonl").write_text(json.dumps({"tokens": TEXTS[0].split()}) + "\n")
    shown = run("predict", made / "slots-merged", "--file", tmp_path / "words.jsonl")
    assert shown.code == 0 and " ".join(TEXTS[0].split()[:3]) in shown.stdout, shown.stderr


@pytest.mark.parametrize("form", ["lists", "conll", "spans"])
def test_verify_measures_entities_for_pytorch_and_the_graph(form: str, made: Path, tmp_path: Path) -> None:
    rows = tag_rows(12)
    path = write_rows(tmp_path / "test.jsonl", rows)
    if form == "conll":
        path = tmp_path / "test.conll"
        lines = ["".join(f"{w}\t{t}\n" for w, t in zip(row["tokens"], row["ner_tags"], strict=True)) for row in rows]
        path.write_text("\n".join(lines))
    elif form == "spans":
        spans = [{"text": "turn the desk lamp on", "entities": [[9, 18, "thing"]]}] * 12
        path = write_rows(tmp_path / "spans.jsonl", spans)
    report = verify(made / "slots-merged", data=str(path), record=False)
    assert report.evaluation is not None and report.evaluation.metric == "entity F1"
    assert report.evaluation.pytorch == report.evaluation.onnx
    assert report.evaluation.details is not None and report.evaluation.details.per_class
    only = verify(made / "slots-merged", data=str(path), record=False, reference_only=True)
    assert only.evaluation is not None and only.evaluation.onnx == report.evaluation.onnx
    bad = write_rows(tmp_path / "bad.jsonl", [{"tokens": ["on"], "tags": ["B-person"]}])
    fails(2, "has the tag 'B-person', which the model's tags lack", "verify", made / "slots-merged", "--data", bad)


def test_words_that_are_cut_off_are_not_measured(made: Path, tmp_path: Path) -> None:
    rows = [{"tokens": row["tokens"] * 5, "ner_tags": row["ner_tags"] * 5} for row in tag_rows(4)]
    report = verify(made / "slots-merged", data=str(write_rows(tmp_path / "long.jsonl", rows)), record=False)
    assert report.evaluation is not None and report.evaluation.examples == 4


def test_without_torch_it_tags_and_verifies(made: Path) -> None:
    without = ("torch", "transformers", "peft", "seqeval", "sklearn")
    done = run_process("predict", made / "both", "-a", "rooms", TEXTS[2], "--json", without=without)
    assert done.code == 0, done.stderr
    tagger: Any = load(made / "both")
    got = [(item["label"], item["start"]) for item in json.loads(done.stdout)[0]["answers"]["rooms"]]
    assert got == [(item.label, item.start) for item in tagger.tag([TEXTS[2]], "rooms")[0].entities]
    checked = run_process("verify", made / "both", "--no-write", without=without)
    assert checked.code == 0, checked.stderr


def test_seqeval_is_asked_for_by_name(made: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "test.jsonl", tag_rows(2))
    done = run_process("verify", made / "slots-merged", "--data", data, without=("seqeval",))
    assert done.code == 4 and "seqeval" in done.stderr and "Traceback" not in done.stderr


def test_an_adapter_is_added_and_merged_into_the_checkpoint(made: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made / "both", tmp_path / "bundle")
    more = make_tag_adapter(made / "base", tmp_path / "more", ["O", *(f"B-{n}" for n in range(20))], seed=7)
    done = run("adapter", "add", tmp_path / "bundle", more)
    assert done.code == 0, done.stderr
    session = Bundle.open(tmp_path / "bundle").adapter_session()
    batch = Bundle.open(tmp_path / "bundle").preprocessor()(TEXTS[:3])
    wide = session.run(batch, ["more", "rooms", "more"])
    assert [output.shape[-1] for output in wide] == [21, 3, 21]
    assert run("merge", made / "base", made / "slots", "-o", tmp_path / "merged").code == 0
    merged = AutoModelForTokenClassification.from_pretrained(tmp_path / "merged").eval()
    inputs = {key: torch.from_numpy(array) for key, array in batch.items()}
    with torch.inference_mode():
        np.testing.assert_allclose(merged(**inputs).logits.numpy(), peft_scores(made, "slots", batch), atol=1e-4)
    shown = run("inspect", tmp_path / "bundle")
    assert shown.code == 0 and "token-classification" in shown.stdout


@pytest.mark.parametrize("mode", ["merged", "branches"])
def test_int8_is_calibrated_and_judged_by_tokens(mode: str, made: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", tag_rows(60))
    words = ["export", made / "base", "-o", tmp_path / "bundle", "--precision", "int8", "--mode", mode, "--no-verify"]
    if mode == "merged":
        words += ["-a", made / "slots", "--calibration", data]
    else:
        words += ["-a", f"slots={made / 'slots'}", "-a", f"rooms={made / 'rooms'}"]
    done = run(*words)
    assert done.code == 0, done.stderr
    bundle = Bundle.open(tmp_path / "bundle")
    if mode == "merged":
        assert bundle.manifest.quantization is not None and bundle.manifest.quantization.samples == 45
    tagger: Any = load(tmp_path / "bundle")
    assert len(tagger.tag(TEXTS, None if mode == "merged" else ["slots", "rooms"] * 2)) == len(TEXTS)
