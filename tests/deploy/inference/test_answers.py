"""Answers are those of transformers' pipeline for what the base's configuration says of them, merged and with branches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rmlora.package import write_metadata
from rmlora_deploy import export, load, merge, verify
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference import Classifier
from tests.helpers.answers import KINDS, TEXTS, make_adapter, make_base, pipeline_answers
from tests.helpers.cli import fails, run
from tests.helpers.rarely import rarely
from tests.helpers.servers import ask, serving

FUNCTIONS = {
    "one label": "softmax",
    "said to be one label": "softmax",
    "several labels": "sigmoid",
    "one score": "sigmoid",
    "one number": "none",
    "two numbers": "none",
}


def answers(bundle: Path, adapter: str | None = None) -> list[dict[str, float]]:
    opened = load(bundle)
    assert isinstance(opened, Classifier)
    return [dict(answer.ranking) for answer in opened.predict(TEXTS, adapter)]


def same(got: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "kind", [rarely(kind) if kind in ("said to be one label", "two numbers") else kind for kind in KINDS]
)
def test_answers_are_those_of_the_pipeline(kind: str, tmp_path: Path) -> None:
    problem, labels = KINDS[kind]
    base = make_base(tmp_path / "base", kind)
    adapter = make_adapter(base, tmp_path / "adapter")
    expected = pipeline_answers(base, adapter)
    assert list(expected[0]) != [f"LABEL_{number}" for number in range(len(labels))]
    export(base, adapter, tmp_path / "merged")
    export(base, {"one": adapter}, tmp_path / "branches")
    same(answers(tmp_path / "merged"), expected)
    same(answers(tmp_path / "branches", "one"), expected)

    for name in ("merged", "branches"):
        manifest = Bundle.open(tmp_path / name).manifest
        assert manifest.labels == labels and manifest.function_to_apply == FUNCTIONS[kind]
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert [config["id2label"][str(number)] for number in range(len(labels))] == labels
        assert config.get("problem_type") == problem
    assert Bundle.open(tmp_path / "branches").adapter("one").labels == labels
    merge(base, adapter, tmp_path / "checkpoint")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert [config["id2label"][str(number)] for number in range(len(labels))] == labels
    assert config.get("problem_type") == problem

    report = Bundle.open(tmp_path / "merged").manifest.verification
    assert report is not None and report.onnx is not None and report.passed
    assert (report.onnx.argmax_agreement is None) == (kind in ("one score", "one number", "two numbers"))
    shown = run("predict", tmp_path / "merged", *TEXTS, "--top", "3")
    assert shown.code == 0 and "100.0%" not in shown.stdout
    assert ("%" in shown.stdout) == (report.onnx.argmax_agreement is not None)
    stated = json.loads(run("predict", tmp_path / "merged", *TEXTS, "--json").stdout)
    key = "probability" if report.onnx.argmax_agreement is not None else "score"
    for row, row_expected in zip(stated, expected, strict=True):
        told = {answer["label"]: answer[key] for answer in row["answers"]["merged"]}
        least = {"several labels": 0.5, "one score": 0.0, "one number": -np.inf, "two numbers": -np.inf}.get(kind)
        least = max(row_expected.values()) if least is None else least
        assert told == pytest.approx({label: share for label, share in row_expected.items() if share >= least}, rel=1e-4, abs=1e-5)  # fmt: skip


@pytest.mark.parametrize("kind", ["one label", "several labels", rarely("one score"), rarely("one number")])
def test_the_server_gives_the_same_answers(kind: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", kind)
    adapter = make_adapter(base, tmp_path / "adapter")
    make_adapter(base, tmp_path / "loaded", seed=2)
    expected, loaded = pipeline_answers(base, adapter), pipeline_answers(base, tmp_path / "loaded")
    export(base, adapter, tmp_path / "merged", verify=False)
    export(base, {"one": adapter}, tmp_path / "branches", verify=False)
    with serving(
        {"merged": tmp_path / "merged", "branches": tmp_path / "branches"}, adapter_dirs=(tmp_path,)
    ) as server:
        made = ask(server.url, "/v1/load_lora_adapter", {"lora_name": "later", "lora_path": "loaded"})
        assert made.status == 200, made.text
        for model, wanted in (("merged", expected), ("one", expected), ("later", loaded)):
            card = ask(server.url, f"/v1/models/{model}").body
            assert card["labels"] == KINDS[kind][1] and card["function_to_apply"] == FUNCTIONS[kind]
            reply = ask(server.url, "/classify", {"model": model, "input": TEXTS}).body
            same([dict(zip(card["labels"], row["probs"], strict=True)) for row in reply["data"]], wanted)
            for row, row_wanted in zip(reply["data"], wanted, strict=True):
                assert row["label"] == max(row_wanted, key=row_wanted.__getitem__)


def test_adapters_of_one_bundle_may_differ_in_their_answers(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "one label")
    plain, several = make_adapter(base, tmp_path / "plain"), make_adapter(base, tmp_path / "several", seed=2)
    write_metadata(several, {"problem_type": "multi_label_classification", "labels": ["a", "b", "c"]})
    export(base, {"plain": plain, "several": several}, tmp_path / "both")
    opened = load(tmp_path / "both")
    assert isinstance(opened, Classifier)
    mixed = opened.predict([text for text in TEXTS for _ in range(2)], ["plain", "several"] * len(TEXTS))
    same([dict(answer.ranking) for answer in mixed[::2]], pipeline_answers(base, plain))
    config = {"problem_type": "multi_label_classification", "id2label": dict(enumerate("abc"))}
    same([dict(answer.ranking) for answer in mixed[1::2]], pipeline_answers(base, several, **config))


@pytest.mark.parametrize(
    ("kind", "cells", "metric"),
    [
        ("one label", ["red", "green", "blue", "red"], "accuracy"),
        ("several labels", ["toxic", "toxic, insult", "threat;insult", "toxic|threat|insult"], "micro F1"),
        ("several labels", [["toxic"], ["toxic", "insult"], [], [0, 1, 2]], "micro F1"),
        ("two numbers", [[1, 2], [3, 1.5], [2, 2], [0, 0]], "Pearson correlation"),
        ("one score", [0, 1, 0.5, 1], "Pearson correlation"),
        ("one number", [1, 4.5, 2, 3], "Pearson correlation"),
    ],
)
def test_the_metric_is_that_of_the_kind_of_answer(kind: str, cells: list[object], metric: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", kind)
    adapter = make_adapter(base, tmp_path / "adapter")
    rows = [{"text": text, "label": cell} for text, cell in zip(TEXTS, cells, strict=True)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    export(base, adapter, tmp_path / "bundle", data=str(tmp_path / "data.jsonl"))
    report = verify(tmp_path / "bundle", data=str(tmp_path / "data.jsonl"))
    assert report.evaluation is not None and report.evaluation.metric == metric
    assert report.evaluation.pytorch is not None
    assert report.evaluation.onnx == pytest.approx(report.evaluation.pytorch, abs=1e-4)
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "w1", "label": "nothing like it"}) + "\n")
    fails(3, "has the label 'nothing like it'", "verify", tmp_path / "bundle", "--data", tmp_path / "data.jsonl")


def test_the_recorded_threshold_decides_what_applies(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "several labels")
    plain, low = make_adapter(base, tmp_path / "plain"), make_adapter(base, tmp_path / "low")
    labels = KINDS["several labels"][1]
    write_metadata(low, {"problem_type": "multi_label_classification", "labels": labels, "threshold": 0.01})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": t, "label": labels}) + "\n" for t in TEXTS))
    export(base, {"plain": plain, "low": low}, tmp_path / "both", data={"low": str(tmp_path / "data.jsonl")})
    opened = load(tmp_path / "both")
    assert isinstance(opened, Classifier)
    for text in TEXTS:
        usual, all_of_them = opened.predict([text] * 2, ["plain", "low"])
        assert usual.ranking == all_of_them.ranking
        assert usual.chosen == tuple(item for item in usual.ranking if item[1] >= 0.5)
        assert all_of_them.chosen == tuple(item for item in usual.ranking if item[1] >= 0.01)
        assert len(all_of_them.chosen) > len(usual.chosen)
    report = Bundle.open(tmp_path / "both").manifest.verification
    assert report is not None and report.adapters is not None and report.adapters["low"].evaluation is not None
    assert report.adapters["low"].evaluation.onnx > 0.9  # nearly all labels apply, and all are right
    shown = " ".join(run("inspect", tmp_path / "both").stdout.split())
    assert "from 0.5 with plain, from 0.01 with low" in shown
    merged = export(base, low, tmp_path / "merged", mode="merged")
    assert merged.manifest.threshold == 0.01
    write_metadata(low, {"threshold": 1.5})
    fails(3, "threshold", "export", base, "-a", low, "-o", tmp_path / "no")


def test_labels_given_by_the_user_replace_those_of_the_base(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "one label")
    adapter = make_adapter(base, tmp_path / "adapter")
    (tmp_path / "names.txt").write_text("rot\ngrün\nblau\n")
    names = ["rot", "grün", "blau"]
    done = run("export", base, "-a", adapter, "-o", tmp_path / "merged", "--labels", "rot,grün,blau")
    assert done.code == 0, done.stderr
    done = run("export", base, "-a", f"one={adapter}", "-o", tmp_path / "both", "--mode", "branches",
               "--labels", tmp_path / "names.txt")  # fmt: skip
    assert done.code == 0, done.stderr
    done = run("adapter", "add", tmp_path / "both", f"two={make_adapter(base, tmp_path / 'two', seed=2)}",
               "--labels", tmp_path / "names.txt")  # fmt: skip
    assert done.code == 0, done.stderr
    both = Bundle.open(tmp_path / "both")
    assert Bundle.open(tmp_path / "merged").labels == both.adapter("one").labels == both.adapter("two").labels == names
    assert both.labels == ["red", "green", "blue"]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["id2label"]["1"] == "grün"
    message = "gives 2 names, but the head of"
    fails(2, message, "export", base, "-a", adapter, "-o", tmp_path / "no", "--labels", "a,b")
    fails(2, message, "adapter", "add", tmp_path / "both", f"three={adapter}", "--labels", "a,b")
    assert not (tmp_path / "no").exists()


def test_a_bundle_of_version_2_answers_by_its_base(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "several labels")
    adapter = make_adapter(base, tmp_path / "adapter")
    expected = pipeline_answers(base, adapter)
    for mode in ("merged", "branches"):
        bundle = export(base, {"one": adapter}, tmp_path / mode, mode=mode, verify=False)  # type: ignore[arg-type]
        manifest = json.loads((bundle.path / "manifest.json").read_text())
        for entry in (manifest, *manifest.get("adapters", {}).values()):
            del entry["function_to_apply"]
        (bundle.path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))
        same(answers(bundle.path, "one" if mode == "branches" else None), expected)
