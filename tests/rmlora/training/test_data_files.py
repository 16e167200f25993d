"""Data files as people have them: quotes, separators, encodings, empty cells and labels of every kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from rmlora.errors import ConfigError, InputError, RMLoRAError
from rmlora.tasks import get_task
from rmlora.text_pair import TextPair
from rmlora.training.data import Columns, LabeledData, Splits, load_split, load_splits
from rmlora.training.table import Reading

TASK = get_task("text-classification")


def read(path: Path, content: str | bytes, **reading: object) -> LabeledData:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_split(TASK, str(path), Columns(), reading=Reading(**reading))  # type: ignore[arg-type]


def splits(path: Path, rows: list[dict[str, object]], **options: object) -> Splits:
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = {"columns": Columns(), "validation_fraction": 0.2, "seed": 1, **options}
    return load_splits(TASK, str(path), settings.pop("validation", None), settings.pop("test", None), **settings)  # type: ignore[arg-type]


def refused(path: Path, content: str | bytes, message: str, **options: object) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read(path, content, **options)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(["a"], "a list"), (5, "a number"), (1.5, "a number"), (True, "true or false"), ({}, "an object")],
)
def test_a_value_that_is_no_text_is_not_called_missing(tmp_path: Path, value: object, kind: str) -> None:
    rows = [{"text": "a", "label": 1}, {"text": value, "label": 2}]
    content = "\n".join(map(json.dumps, rows))
    for options in ({}, {"skip_empty": True}):
        refused(tmp_path / "d.jsonl", content, f"d.jsonl has {kind} in 'text', where a text belongs", **options)
    kept = read(tmp_path / "d.jsonl", content.replace(json.dumps(value), "null"), skip_empty=True)
    assert kept.inputs == ["a"]


def test_separators_at_the_ends_of_lines_are_no_column(tmp_path: Path) -> None:
    assert read(tmp_path / "d.csv", "text,label,\na,x,\n").notes == ()
    refused(tmp_path / "d.csv", "\n \n\n", "d.csv is empty: there is nothing to train on.")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"Hi, he said\ta\nthen "what"\tb\n"end\tb\n', ['"Hi, he said', 'then "what"', '"end']),
        ('text\tlabel\r\n"Yes"\ta\r\nno\tb\r\n', ['"Yes"', "no"]),
        ('text\tlabel\n"she said ""no"" to me"\ta\nno\tb\n', ['she said "no" to me', "no"]),
        ('"text"\t"label"\n"one"\t"a"\n"two"\t"b"\n', ["one", "two"]),
        ('text\tlabel\n"two\nlines"\ta\n"a\ttab"\tb\n', ["two\nlines", "a\ttab"]),
        ("text\tlabel\ntwo\u2028lines\ta\nno\tb\n", ["two\u2028lines", "no"]),
    ],
)
def test_a_quote_in_a_tsv_file_joins_no_rows(tmp_path: Path, content: str, texts: list[str]) -> None:
    data = read(tmp_path / "data.tsv", content)
    assert data.inputs == texts
    assert set(data.labels) == {"a", "b"}


def test_files_written_by_pandas_come_back_whole(tmp_path: Path) -> None:
    texts = ['"open', "a, b", "two\nlines", 'both "x", y\nz', "a\ttab", "NA", "; | ,", "ends with \\", "o'clock", '""']
    frame = pd.DataFrame({"label": ["x", "y"] * 5, "text": texts})
    for name, separator in (("a.csv", ","), ("b.tsv", "\t"), ("c.csv", ";"), ("d.csv", "\t"), ("e.csv", "|")):
        frame.to_csv(tmp_path / name, sep=separator, index=False)
        data = load_split(TASK, str(tmp_path / name), Columns())
        assert data.inputs == texts, name
        assert any("separated by" in note for note in data.notes) == (name[0] in "cde")


def test_words_that_mean_missing_elsewhere_are_labels(tmp_path: Path) -> None:
    names = ["NA", "None", "null", "nan", "NaN", "N/A", "true", "-"]
    content = "text,label\n" + "".join(f"w{number},{name}\n" for number, name in enumerate(names))
    assert read(tmp_path / "data.csv", content).labels == names
    assert read(tmp_path / "data.tsv", content.replace(",", "\t")).labels == names


@pytest.mark.parametrize("value", [[0, 1], ["a"], [], {"a": 1}, "[0, 1]", "['a', 'b']"])
def test_several_labels_are_refused(tmp_path: Path, value: object) -> None:
    rows = [{"text": "w1", "label": value}, {"text": "w2", "label": value}]
    refused(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)), "Line 1 of")
    refused(tmp_path / "b.json", json.dumps(rows), "has several labels")
    pd.DataFrame([{"text": row["text"], "label": str(value)} for row in rows]).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(InputError, match="training is for one label per row"):
        load_split(TASK, str(tmp_path / "c.csv"), Columns())


def test_two_texts_are_never_cut_to_one_silently(tmp_path: Path) -> None:
    refused(
        tmp_path / "other.csv",
        "message,review,label\nwho,he,a\nwhat,it,b\n",
        "has the columns 'message' and 'review': choose the texts with --text-column, and the second text of a pair with "
        "--pair-column",
    )
    path = tmp_path / "qnli.csv"
    pairs = read(path, "question,sentence,label\nwho,he,a\nwhat,it,b\n")
    assert pairs.inputs == [TextPair("who", "he"), TextPair("what", "it")]
    assert pairs.notes == (
        f"The rows of {path} are pairs of 'question' and 'sentence': name one with --text-column for single texts.",
    )
    chosen = load_split(TASK, str(path), Columns("question"))
    assert chosen.inputs == ["who", "what"]
    assert chosen.notes == (f"Columns of {path} that are not used: sentence.",)


def test_digits_that_are_not_numbers_are_labels(tmp_path: Path) -> None:
    for names in (["①", "②", "③"], ["--1", "2"], ["١", "٢"], ["9" * 5000, "1"], ["²", "1"]):
        rows = [{"text": f"w{number}", "label": name} for number, name in enumerate(names * 3)]
        assert set(splits(tmp_path / "data.jsonl", rows).labels) == set(names)
    rows = [{"text": f"w{number}", "label": label} for number, label in enumerate([10, 9, -1] * 4)]
    assert splits(tmp_path / "data.jsonl", rows).labels == ("-1", "9", "10")


def test_whole_floats_are_the_labels_that_they_mean(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "text,label\na,1.0\nb,0.0\nc,2\n").labels == ["1", "0", "2"]
    assert read(tmp_path / "b.csv", "text,label\na,1.0\nb,1.1\n").labels == ["1.0", "1.1"]
    assert read(tmp_path / "c.jsonl", '{"text": "a", "label": 1.0}\n{"text": "b", "label": 0}\n').labels == ["1", "0"]
    pd.DataFrame({"text": ["a", "b"], "label": [1.0, 0.0]}).to_parquet(tmp_path / "d.parquet")
    assert load_split(TASK, str(tmp_path / "d.parquet"), Columns()).labels == ["1", "0"]
    rows: list[dict[str, object]] = [{"text": f"w{number}", "label": number % 2} for number in range(10)]
    (tmp_path / "test.csv").write_text("text,label\na,1.0\nb,0.0\n")
    tested = splits(tmp_path / "train.jsonl", rows, test=str(tmp_path / "test.csv")).test
    assert tested is not None and tested[1] == [1, 0]


def test_lines_are_those_of_the_file_with_cells_of_several_lines(tmp_path: Path) -> None:
    content = 'text,label\n"one\ntwo\nthree",a\n\nfour,b\n,a\nfive,\n'
    refused(tmp_path / "data.csv", content, "Line 7 of", skip_empty=False)
    refused(
        tmp_path / "data.csv",
        content,
        "has no 'text'; line 8 has no 'label': fill them in or leave them out with --skip-empty",
    )
    data = read(tmp_path / "data.csv", content, skip_empty=True)
    assert data.inputs == ["one\ntwo\nthree", "four"]
    assert data.notes == (f"Left out 2 rows of {tmp_path / 'data.csv'}: line 7 has no 'text'; line 8 has no 'label'.",)
    many = "text,label\n" + "w,\n" * 12 + "x,a\n"
    refused(tmp_path / "data.csv", many, "Lines 2, 3, 4, 5, 6, 7, 8, 9 and 4 more of", skip_empty=False)
    rows = '{"text": "a", "label": "x"}\n\n{"text": null, "label": "y"}\n'
    refused(tmp_path / "data.jsonl", rows, "Line 3 of", skip_empty=False)
    refused(tmp_path / "data.json", json.dumps([{"text": "a"}, {"label": "x"}]), "has no 'text'", skip_empty=False)
    refused(tmp_path / "data.csv", "text,label\n,a\n", "has no row with both 'text' and 'label'", skip_empty=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\n"a\n', "The quote that begins a cell in line 2 of"),
        ('text,label\nx,a\n"b" c,a\n', "begins in line 3 has a quoted cell that goes on"),
        (
            "text,label\nx,a\none, two,b\n",
            "has 3 cells, but the header has 2 columns: put quotes around a text that contains a comma",
        ),
        ("text,label,label\nx,a,b\n", "has the column 'label' twice"),
        ("ham,Go now\nspam,Win\n", "the first line of a file must name its columns"),
        ("text,label\n", "holds no rows"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, content: str, message: str) -> None:
    refused(tmp_path / "data.csv", content, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": "x"}\n{"text"\n', "line 2 is not valid JSON"),
        ('{"text": "a", "label": "x"}\n[1]\n', "line 2 is not an object"),
        ("[" * 100_000, "cannot be read as a dataset"),
        ("9" * 5000, "cannot be read as a dataset"),
    ],
)
def test_a_line_that_is_not_json_is_named(tmp_path: Path, content: str, message: str) -> None:
    refused(tmp_path / "data.jsonl", content, message)
    refused(tmp_path / "data.json", content, "cannot be read as a dataset")


def test_json_documents_of_every_shape(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    columns = {"text": ["a", "b"], "label": ["x", "y"]}
    for document in (
        json.dumps(rows),
        json.dumps({"data": rows}, indent=1),
        json.dumps(columns),
        "\n".join(map(json.dumps, rows)),
    ):
        data = read(tmp_path / "data.json", document)
        assert (data.inputs, data.labels) == (["a", "b"], ["x", "y"])


TEXT = "text,label\n" + "".join(
    f"{text},{'de' if number % 2 else 'fr'}\n"
    for number, text in enumerate(
        ["Où êtes-vous à Noël", "Grüße aus München, schöner Tag".replace(",", ""), "déjà vu", "Straße"] * 8
    )
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_utf_8_and_marked_encodings_are_recognized(tmp_path: Path, encoding: str) -> None:
    data = read(tmp_path / "data.csv", TEXT.encode(encoding))
    assert data.inputs[:4] == ["Où êtes-vous à Noël", "Grüße aus München schöner Tag", "déjà vu", "Straße"]
    assert data.notes == ()
    rows = json.dumps({"text": "Grüße", "label": "a"}, ensure_ascii=False) + "\n"
    assert read(tmp_path / "data.jsonl", (rows * 2).encode("utf-16")).inputs == ["Grüße", "Grüße"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Où êtes-vous à Noël"),
        ("cp1250", "Zażółć gęślą jaźń"),
        ("cp1251", "Привет как дела"),
        ("cp932", "今日はいい天気です"),
        ("gb18030", "今天天气很好"),
    ],
)
def test_another_encoding_is_named_with_the_text_and_never_guessed_silently(
    tmp_path: Path, encoding: str, text: str
) -> None:
    content = ("text,label\n" + f"{text},a\n{text} w,b\n" * 20).encode(encoding)
    refused(tmp_path / "data.csv", content, "Line 2 of")
    refused(tmp_path / "data.csv", content, f"it reads '{text},a")
    refused(tmp_path / "data.csv", content, "Pass the right one with --encoding, or save the file as UTF-8.")
    assert read(tmp_path / "data.csv", content, encoding=encoding).inputs[0] == text


@pytest.mark.parametrize(
    ("rows", "line", "western", "other"),
    [
        (["Win £500 now,a", "see you later,b"], 2, "Win £500 now,a", "Win Ł500 now,a"),
        (["café at nine,a", "you owe me £5,b"], 3, "you owe me £5,b", "you owe me Ł5,b"),
        (["x " * 40 + "costs £5,a", "later,b"], 2, "…x x x x costs £5,a", "…x x x x costs Ł5,a"),
    ],
)
def test_an_english_text_is_taken_for_western_and_shown_where_the_encodings_differ(
    tmp_path: Path, rows: list[str], line: int, western: str, other: str
) -> None:
    for repeated in (1, 30):
        content = ("text,label\n" + "\n".join(rows * repeated) + "\n").encode("latin-1")
        refused(tmp_path / "data.csv", content, f"Line {line} of")
        refused(tmp_path / "data.csv", content, f"is not UTF-8; as cp1252 it reads '{western}', as ")
        refused(tmp_path / "data.csv", content, f", as cp1250 it reads '{other}'")


def test_an_encoding_that_is_none_is_an_error_with_a_line(tmp_path: Path) -> None:
    refused(tmp_path / "data.csv", b"text,label\nw1,a\n" + bytes(range(256)) * 40, "is not UTF-8")
    refused(tmp_path / "data.csv", TEXT.encode("utf-16-le"), "is not UTF-8")
    assert read(tmp_path / "data.csv", TEXT.encode("utf-16-le"), encoding="utf-16-le").inputs[2] == "déjà vu"
    with pytest.raises(ConfigError, match="There is no encoding 'latin-99'"):
        read(tmp_path / "data.csv", TEXT, encoding="latin-99")


def test_excels_line_about_the_separator(tmp_path: Path) -> None:
    refused(tmp_path / "data.csv", "sep=;\r\ntext;label\r\na, b;x\r\n;y\r\n", "Line 4 of")
    assert read(tmp_path / "data.csv", "sep=;\r\ntext;label\r\na, b;x\r\n").inputs == ["a, b"]


def test_labels_without_examples_are_named(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"w{number}", "label": "abc"[number % 3]} for number in range(30)]
    rows.append({"text": "alone", "label": "rare"})
    (tmp_path / "test.csv").write_text("text,label\nw,a\n")
    loaded = splits(tmp_path / "train.jsonl", rows, test=str(tmp_path / "test.csv"))
    assert loaded.notes == (
        "The validation data has no examples of the label 'rare': how well it is predicted is not measured.",
        "The test data has no examples of the labels b, c, rare: how well they are predicted is not measured.",
    )
    assert "alone" in loaded.train[0]
    named = splits(tmp_path / "train.jsonl", rows, labels=("c", "b", "a", "rare", "later"))
    assert named.labels == ("c", "b", "a", "rare", "later")
    assert named.notes[0].startswith("The train data has no examples of the label 'later': the adapter cannot learn to")


def test_given_labels_name_numbers(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"w{number}", "label": number % 2} for number in range(20)]
    loaded = splits(tmp_path / "train.jsonl", rows, labels=("ham", "spam"))
    assert loaded.labels == ("ham", "spam")
    assert [int(text[1:]) % 2 for text in loaded.train[0]] == loaded.train[1]
    for labels, error in ((("ham",), ConfigError), (("ham", "eggs", "spam"), None)):
        if error is None:
            assert splits(tmp_path / "train.jsonl", rows, labels=labels).labels == labels
        else:
            with pytest.raises(error, match="has the label '1', which --labels lacks"):
                splits(tmp_path / "train.jsonl", rows, labels=labels)


def test_a_column_that_is_no_class_is_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"w{number}", "label": f"id {number}"} for number in range(30)]
    with pytest.raises(RMLoRAError, match="has only one distinct example of 30 labels of 30 .*check --label-column"):
        splits(tmp_path / "train.jsonl", rows)
