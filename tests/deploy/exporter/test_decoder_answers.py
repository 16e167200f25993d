"""Answers to a user's prompts, generated while a bundle is exported or verified, beside PyTorch's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmlora.errors import ConfigError, InputError, ParityError
from rmlora.training.data import Columns
from rmlora_deploy import export, load, verify
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.decoder import decoder_bundle
from rmlora_deploy.inference import Generator
from rmlora_deploy.verification import verify_decoder
from tests.helpers.cli import fails, run
from tests.helpers.decoders import decoder_adapter, decoder_base

TOKENS = 9
ASKED = [f"{'long ' * (number % 4)}{number} ?" for number in range(20)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base, adapters, bundles of them, and prompts half of which ``a`` answers as is written."""
    directory = tmp_path_factory.mktemp("answers")
    base = decoder_base("llama", directory / "base")
    adapters = {name: decoder_adapter(base, directory / name, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    export(base, adapters, directory / "both", verify=False)
    export(base, adapters["a"], directory / "merged", verify=False)
    opened = load(directory / "merged")
    assert isinstance(opened, Generator)
    texts = [answer.text for answer in opened.generate(ASKED, max_new_tokens=TOKENS)]
    rows = [
        {"prompt": asked, "completion": text if number % 2 and text.strip() else "another answer"}
        for number, (asked, text) in enumerate(zip(ASKED, texts, strict=True))
    ]
    (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_the_metric_is_that_of_pytorch_and_the_answers_are_the_same(made: Path) -> None:
    options = {"metric": "exact_match", "max_new_tokens": TOKENS, "record": False}
    scores = verify(made / "merged", data=str(made / "data.jsonl"), **options).evaluation  # type: ignore[arg-type]
    assert scores is not None and scores.metric == "exact_match" and scores.identical == scores.examples == len(ASKED)
    assert scores.onnx == scores.pytorch and 0.3 <= scores.onnx <= 0.5
    data = {name: str(made / "data.jsonl") for name in "ab"}
    adapters = verify(made / "both", data=data, **options).adapters  # type: ignore[arg-type]
    assert adapters is not None and adapters["a"].evaluation == scores
    other = adapters["b"].evaluation
    assert other is not None and other.identical == len(ASKED) and other.onnx < scores.onnx
    alone = verify(made / "merged", data=str(made / "data.jsonl"), reference_only=True, **options)  # type: ignore[arg-type]
    assert alone.evaluation is not None and alone.evaluation.onnx == scores.onnx
    assert alone.evaluation.pytorch is None and alone.evaluation.identical is None


def test_data_count_without_pytorch_and_names_of_labels_do_not(made: Path) -> None:
    """Without PyTorch and --metric --data changed nothing, and names of label columns never did."""
    data = str(made / "data.jsonl")
    alone = verify(made / "merged", data=data, reference_only=True, record=False).perplexity
    assert alone is not None and alone.data == "data.jsonl" and alone.pytorch is None
    beside = verify(made / "merged", data=data, record=False).perplexity
    assert beside is not None and (alone.onnx, alone.tokens) == (beside.onnx, beside.tokens)
    assert verify(made / "merged", reference_only=True, record=False).perplexity is None
    for flag, columns in (("label", Columns(label="completion")), ("pair", Columns(pair="completion"))):
        with pytest.raises(ConfigError, match=f"--{flag}-column is of labeled data"):
            verify(made / "merged", data=data, columns=columns, record=False)
        with pytest.raises(ConfigError, match=f"--{flag}-column is of labeled data"):
            export(made / "base", made / "a", made / "no", data=data, columns=columns)


def test_export_writes_it_into_the_manifest_and_prints_it(made: Path, tmp_path: Path) -> None:
    flags = ["--data", made / "data.jsonl", "--metric", "exact_match", "--max-new-tokens", str(TOKENS)]
    done = run("export", made / "base", "-a", made / "a", "-o", tmp_path / "bundle", *flags)
    assert done.code == 0 and "Exact_match on 20 examples of data.jsonl: PyTorch" in done.stdout
    assert "20 answers identical" in done.stdout
    report = Bundle.open(tmp_path / "bundle").manifest.verification
    assert report is not None and report.evaluation is not None and report.evaluation.identical == 20


def test_a_graph_that_answers_worse_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_decoder, "graph_answers", lambda *_: ["wrong"] * len(ASKED))
    with pytest.raises(ParityError, match="has exact_match 0.0000 on data.jsonl where PyTorch has"):
        verify(
            made / "merged", data=str(made / "data.jsonl"), metric="exact_match", max_new_tokens=TOKENS, record=False
        )


def test_what_cannot_be_measured_is_refused(made: Path, tmp_path: Path) -> None:
    bundle, data = made / "merged", str(made / "data.jsonl")
    fails(
        2, "--metric json needs prompts with their answers: give them with --data", "verify", bundle, "--metric", "json"
    )
    fails(2, "--max-new-tokens bounds the answers that --metric compares", "verify", bundle, "--max-new-tokens", "3")
    fails(
        2, "leave out --no-verify", "export", made / "base", "-a", made / "a", "-o", tmp_path / "no", "--data", data,
        "--metric", "json", "--no-verify",
    )  # fmt: skip
    (tmp_path / "plain.jsonl").write_text('{"text": "a story"}\n')
    with pytest.raises(ConfigError, match="holds plain texts without any"):
        verify(bundle, data=str(tmp_path / "plain.jsonl"), metric="exact_match")
    with pytest.raises(
        InputError, match="exceeds the 256 that the model can hold: shorten it, or lower --max-new-tokens"
    ):
        verify(bundle, data=data, metric="exact_match", max_new_tokens=250)


def test_data_are_read_before_the_graph_is_built(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_bundle, "_build", lambda *_: pytest.fail("the graph was built first"))
    (tmp_path / "plain.jsonl").write_text('{"text": "a story"}\n')
    with pytest.raises(InputError, match=r"absent\.jsonl"):
        export(made / "base", made / "a", tmp_path / "no", data=str(tmp_path / "absent.jsonl"))
    with pytest.raises(ConfigError, match="holds plain texts without any"):
        export(made / "base", made / "a", tmp_path / "no", data=str(tmp_path / "plain.jsonl"), metric="exact_match")
