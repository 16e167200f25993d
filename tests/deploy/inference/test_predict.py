"""Classifying with bundles: the right label, several bundles at once, every way of giving inputs, every mistake."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmlora.errors import InputError
from rmlora.inputs import Arrays
from rmlora_deploy.bundles.bundle import MODEL_FILE, Bundle
from rmlora_deploy.inference.classifier import Classifier
from rmlora_deploy.inference.prediction import to_prediction
from tests.helpers.cli import environment, fails, run
from tests.helpers.handmade import color_bundle, word_bundle
from tests.helpers.rarely import rarely

TEXTS = ["w0 w9", "w1", "w9 w9 w2 w9 w9", "w9"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_bundle(tmp_path_factory.mktemp("predict") / "words")


def test_answers_are_the_softmax_of_the_scores_in_order(bundle: Path) -> None:
    answers = Classifier.open(bundle).predict(TEXTS)
    assert [answer.label for answer in answers[:3]] == ["red", "green", "blue"]
    winner = np.exp(5) / (np.exp(5) + 2)
    assert answers[0].probability == pytest.approx(winner)
    for answer in answers:
        assert answer.ranking[0] == (answer.label, answer.probability)
        assert sum(share for _, share in answer.ranking) == pytest.approx(1)
        shares = [share for _, share in answer.ranking]
        assert shares == sorted(shares, reverse=True)


def test_where_several_labels_may_apply_every_one_that_does_is_shown(tmp_path: Path) -> None:
    words = word_bundle(tmp_path / "words")
    manifest = json.loads((words / "manifest.json").read_text())
    (words / "manifest.json").write_text(json.dumps({**manifest, "function_to_apply": "sigmoid"}))
    scores = np.array([2.0, -1.0, 0.0])
    opened = Bundle.open(words, check_files=False)
    both = to_prediction(scores, ["red", "green", "blue"], opened, "sigmoid")
    assert [label for label, _ in both.chosen] == ["red", "blue"] and both.label == "red"
    assert to_prediction(scores - 5, ["red", "green", "blue"], opened, "sigmoid").chosen == ()
    assert [label for label, _ in to_prediction(scores, ["r", "g", "b"], opened, "none").chosen] == ["r", "b", "g"]
    for flags, expected in (
        ((), ["red", "green", "blue"]),
        (("--top", "1"), ["red"]),
    ):  # a word without votes gives one half
        (row,) = json.loads(run("predict", words, "w0", "--json", *flags).stdout)
        assert [item["label"] for item in row["answers"]["words"]] == expected


def test_threads_do_not_cut_each_others_texts(bundle: Path) -> None:
    """Of adapters with different lengths, used by two threads, one's texts were cut to the length of the other."""
    classifier = Classifier.open(bundle)
    made, reading, most = classifier._preprocessor, 0, 0

    class Watched:
        collate = made.collate

        def rows(self, inputs: list[str], *, lengths: list[int | None]) -> list[Arrays]:
            nonlocal reading, most
            reading += 1
            most = max(most, reading)
            time.sleep(0.05)
            reading -= 1
            return made.rows(inputs, lengths=lengths)

    classifier._preprocessor = Watched()  # type: ignore[assignment]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda text: classifier.predict([text])[0].label, ["w0", "w1", "w2"]))
    assert answers == ["red", "green", "blue"] and most == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_batches_and_their_padding_change_nothing(bundle: Path, batch_size: int) -> None:
    classifier = Classifier.open(bundle, threads=1)
    assert classifier.predict(TEXTS, batch_size=batch_size) == [classifier.predict([text])[0] for text in TEXTS]


def test_long_texts_are_cut_to_what_the_adapter_was_trained_on(bundle: Path) -> None:
    assert Classifier.open(bundle).predict(["w0 " * 500])[0].probability == pytest.approx(1)


def test_images_by_path_bytes_or_object(tmp_path: Path) -> None:
    classifier = Classifier.open(color_bundle(tmp_path / "colors"))
    picture = Image.new("RGB", (20, 30), (0, 0, 250))
    picture.save(tmp_path / "blue.png")
    same = [tmp_path / "blue.png", str(tmp_path / "blue.png"), (tmp_path / "blue.png").read_bytes(), picture]
    assert [answer.label for answer in classifier.predict(same)] == ["blue"] * 4


def test_scores_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gives 3 scores for 2 labels"):
        Classifier.open(word_bundle(tmp_path / "two", labels=("yes", "no"))).predict(["w0"])
    broken = Classifier.open(word_bundle(tmp_path / "nan", precision="fp16"))
    broken._merged = lambda batch: np.array([[np.nan, 0, 1]])
    with pytest.raises(InputError, match="NaN or infinity .* precision \\(fp16\\)"):
        broken.predict(["w0"])


def test_json_holds_every_bundle_and_the_top_labels(bundle: Path, tmp_path: Path) -> None:
    other = word_bundle(tmp_path / "other", labels=("rot", "grün", "blau"))
    done = run("predict", bundle, "w2", "w0", "--with", other, "--top", "2", "--json")
    assert done.code == 0
    first, second = json.loads(done.stdout)
    assert first["input"] == "w2"
    assert first["answers"]["words"][0]["label"] == "blue"
    assert len(first["answers"]["words"]) == 2
    assert second["answers"]["other"][0]["label"] == "rot"


def test_bundles_of_the_same_name_are_told_apart_by_path(bundle: Path, tmp_path: Path) -> None:
    other = word_bundle(tmp_path / "words", labels=("a", "b", "c"))
    answers = json.loads(run("predict", bundle, "w0", "--with", other, "--json").stdout)[0]["answers"]
    assert {names[0]["label"] for names in answers.values()} == {"red", "a"}


def test_a_table_shows_texts_as_they_are(bundle: Path) -> None:
    done = run("predict", bundle, "w1 [bold]w9[/] [/nothing]")
    assert done.code == 0
    assert "w1 [bold]w9[/] [/nothing]" in done.stdout
    assert "green  99.7%" not in done.stdout  # 98.7: two others share the rest
    assert "green  98.7%" in done.stdout


def test_inputs_from_a_file_and_from_stdin(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.txt").write_text("w0\n\n  \nw1 w9\n")
    from_file = json.loads(run("predict", bundle, "--file", tmp_path / "texts.txt", "--json").stdout)
    assert [row["input"] for row in from_file] == ["w0", "w1 w9"]
    for words in ([], ["--file", "-"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("w0\nw1 w9\n"))
        assert json.loads(run("predict", bundle, *words, "--json").stdout) == from_file


@pytest.mark.parametrize("name", ["data.csv", "DATA.TSV", "data.json", "data.jsonl"])
def test_the_rows_of_a_table_are_answered(bundle: Path, tmp_path: Path, name: str) -> None:
    separator = "\t" if name.endswith("TSV") else ","
    rows = ({"text": "w0", "label": "red"}, {"text": "w1 w9", "label": ""})
    written = [separator.join(row.values()) for row in rows]
    content = "\n".join([f"text{separator}label", *written]) if "j" not in name else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(content + "\n")
    answered = json.loads(run("predict", bundle, "--file", tmp_path / name, "--json").stdout)
    assert [row["input"] for row in answered] == ["w0", "w1 w9"]
    chosen = json.loads(run("predict", bundle, "--file", tmp_path / name, "--text-column", "text", "--json").stdout)
    assert chosen == answered
    (tmp_path / "empty.csv").write_text("text,label\nw0,red\n,blue\n")
    fails(3, "Line 3 of", "predict", bundle, "--file", tmp_path / "empty.csv")


def test_columns_are_those_of_a_table(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("w0\n")
    fails(3, "so it has no columns", "predict", bundle, "--file", tmp_path / "lines.txt", "--text-column", "a")
    fails(2, "are of a table: give it with --file", "predict", bundle, "w0", "--text-column", "a")


def test_the_name_of_a_file_as_a_text_is_answered_with_a_note(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "w0").write_text("w1\n")
    done = run("predict", bundle, tmp_path / "w0", "--json")
    assert [row["input"] for row in json.loads(done.stdout)] == [str(tmp_path / "w0")]
    assert "w0 is a file; its name is the text that is answered here" in " ".join(done.stderr.split())
    assert "is a file" not in run("predict", bundle, "w0 w1", "w1 " * 5000).stderr
    Image.new("RGB", (20, 30), (0, 0, 250)).save(tmp_path / "blue.png")
    assert "is a file" not in run("predict", color_bundle(tmp_path / "colors"), tmp_path / "blue.png").stderr


@pytest.mark.parametrize("ending", ["\n", rarely("\x04")])
def test_on_a_terminal_it_asks_until_an_empty_line_or_the_end(bundle: Path, ending: str) -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rmlora_deploy", "predict", str(bundle)],
        stdin=child, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    os.close(child)
    os.write(parent, f"w2 w9\nw0\n{ending}".encode())
    stdout, stderr = process.communicate(timeout=120)
    os.close(parent)
    assert process.returncode == 0, stderr
    assert "an empty line ends" in stdout
    assert stdout.index("blue") < stdout.index("red")


def test_mistakes_end_with_one_line_and_the_code_of_their_kind(bundle: Path, tmp_path: Path) -> None:
    fails(3, "Bundle not found", "predict", tmp_path / "none", "w0")
    fails(3, "is not a directory", "predict", bundle / MODEL_FILE, "w0")
    fails(3, "holds no manifest.json", "predict", tmp_path, "w0")
    fails(3, "Text 1 is empty", "predict", bundle, "  ")
    fails(3, "There is nothing to classify", "predict", bundle, "--file", os.devnull)
    fails(3, "Input file not found", "predict", bundle, "--file", tmp_path / "none.txt")
    fails(3, "is a directory, but a file is expected", "predict", bundle, "--file", tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    fails(3, "cannot be read as UTF-8", "predict", bundle, "--file", tmp_path / "latin.txt")
    fails(2, "Unknown provider 'gpu'", "predict", bundle, "w0", "--provider", "gpu")
    fails(5, "Provider 'dml'", "predict", bundle, "w0", "--provider", "dml")
    colors = color_bundle(tmp_path / "colors")
    fails(3, "Image not found", "predict", colors, tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    fails(3, "cannot be decoded as an image", "predict", colors, tmp_path / "text.png")
    fails(2, "ask them in two commands", "predict", bundle, "w0", "--with", colors)


def test_damaged_bundles_are_refused(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path / "words")
    whole = (bundle / MODEL_FILE).read_bytes()
    (bundle / MODEL_FILE).write_bytes(whole[:-5])
    fails(3, "differs from the manifest (SHA-256)", "predict", bundle, "w0")
    (bundle / MODEL_FILE).unlink()
    fails(3, "is missing: the bundle is incomplete", "predict", bundle, "w0")
    (bundle / "manifest.json").write_text("{")
    fails(3, "cannot be read as JSON", "predict", bundle, "w0")
    (bundle / "manifest.json").write_text('{"format_version": 99}')
    fails(3, "has format version 99", "predict", bundle, "w0")
