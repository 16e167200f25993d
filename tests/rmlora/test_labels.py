"""Label names are read from a list with commas and from every kind of file that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmlora.errors import ConfigError, InputError, RMLoRAError
from rmlora.labels import check_label_count, parse_labels


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("ham,spam", ("ham", "spam")),
        (" ham , spam ", ("ham", "spam")),
        ('"no, thanks",yes', ("no, thanks", "yes")),
        ("one", ("one",)),
        ("ä,ö,①", ("ä", "ö", "①")),
        (",".join(f"label {number}" for number in range(3000)), tuple(f"label {number}" for number in range(3000))),
    ],
)
def test_names_with_commas_between_them(value: str, names: tuple[str, ...]) -> None:
    assert parse_labels(value) == names


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("labels.txt", "ham\nspam, or worse\n"),
        ("labels.txt", "\ufeffham\r\nspam, or worse\r\n\r\n"),
        ("labels", "ham\nspam, or worse"),
        ("labels.json", json.dumps(["ham", "spam, or worse"])),
        ("labels.json", json.dumps({"1": "spam, or worse", "0": "ham"})),
        ("config.json", json.dumps({"model_type": "bert", "id2label": {"0": "ham", "1": "spam, or worse"}})),
    ],
)
def test_names_in_a_file(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert parse_labels(str(tmp_path / file)) == parse_labels(tmp_path / file) == ("ham", "spam, or worse")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", InputError, "holds no label names"),
        (b"\xff\xfea\x00", InputError, "is not UTF-8 text"),
        (b"{", InputError, "is not valid JSON"),
        (b"[" * 100_000, InputError, "is not valid JSON"),
        (b'{"1": "a", "2": "b"}', InputError, "numbered from 0"),
        (b'{"0": 1}', InputError, "neither a list of label names"),
        (b"[1, 2]", InputError, "neither a list of label names"),
        (b'["a", ""]', ConfigError, "Label 2 of"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes, error: type[RMLoRAError], message: str) -> None:
    path = tmp_path / ("labels.txt" if content[:1] in (b"", b"\xff") else "labels.json")
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        parse_labels(path)


def test_a_bad_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Label 2 of --labels is empty"):
        parse_labels("a,,b")
    with pytest.raises(ConfigError, match="names the label 'a' twice"):
        parse_labels("a,b,a")
    with pytest.raises(InputError, match="Labels not found"):
        parse_labels(str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="cannot be read"):
        parse_labels(tmp_path)
    with pytest.raises(InputError, match="holds no label names"):
        parse_labels("")
    with pytest.raises(ConfigError, match="gives 1 name, but the head of x has 2 outputs"):
        check_label_count(("a",), 2, source="x")
    check_label_count(("a", "b"), 2, source="x")
