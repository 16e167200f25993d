"""Without transformers, texts and images become the same arrays as with it, for every kind of tokenizer and processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoImageProcessor, AutoTokenizer

from rmlora.errors import CheckpointError
from rmlora.inputs import Arrays, TextInputs
from rmlora.plain_images import PlainImageProcessor
from rmlora.plain_tokenizer import PlainTokenizer
from rmlora.sample_data import SENTENCES, draw_image
from rmlora.text_pair import TextPair
from rmlora.tokenized_texts import encode
from rmlora_deploy.bundles.processor import write_side_files
from tests.helpers.cli import tokenizer as word_tokenizer

CORPUS = [*SENTENCES, "Ünïcode, naïve café — 你好世界! ﬁn", "don't  stop\tnow", "a1 b22 c333 <html> [MASK]"]
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def trained(model: Any, trainer: Any, before: Any) -> dict[str, Any]:
    made = Tokenizer(model)
    made.pre_tokenizer = before
    made.train_from_iterator(CORPUS, trainer)
    content: dict[str, Any] = json.loads(made.to_str())["model"]
    return content


def bert(lower: bool) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    vocab = trained(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer())["vocab"]
    return transformers.BertTokenizer(vocab=vocab, do_lower_case=lower, model_max_length=24)


def byte_level(kind: str) -> Any:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    model = trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    merges = [tuple(pair) for pair in model["merges"]]
    return getattr(transformers, kind)(vocab=model["vocab"], merges=merges, model_max_length=24)


def unigram(kind: str, special: list[str]) -> Any:
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token=special[0])
    vocab = trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())["vocab"]
    return getattr(transformers, kind)(vocab=[tuple(item) for item in vocab], model_max_length=24)


KINDS: dict[str, Callable[[], Any]] = {
    "BERT, WordPiece": lambda: bert(True),
    "BERT, cased": lambda: bert(False),
    "RoBERTa, byte-level BPE": lambda: byte_level("RobertaTokenizer"),
    "GPT-2, no special tokens": lambda: byte_level("GPT2Tokenizer"),
    "DeBERTa, Unigram": lambda: unigram("DebertaV2Tokenizer", ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]),
    "XLM-R, Unigram": lambda: unigram("XLMRobertaTokenizer", ["<unk>", "<s>", "<pad>", "</s>", "<mask>"]),
    "XLNet, padded on the left": lambda: unigram(
        "XLNetTokenizer", ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"]
    ),
    "T5, Unigram": lambda: unigram("T5Tokenizer", ["<unk>", "<pad>", "</s>"]),
    "words": word_tokenizer,
}


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PlainTokenizer]:
    directory = tmp_path_factory.mktemp("tokenizer")
    KINDS[request.param]().save_pretrained(directory)
    full = AutoTokenizer.from_pretrained(directory)
    if full.pad_token is None:
        full.pad_token = full.eos_token
    return full, PlainTokenizer.open(directory)


def rows(processor: Any, texts: list[Any], names: list[str], length: int | None) -> list[Arrays]:
    return TextInputs().rows(processor, texts, lengths=[length] * len(texts), names=names)


@settings(max_examples=30)
@given(
    texts=st.lists(st.text(min_size=1).filter(str.strip) | st.sampled_from(CORPUS), min_size=1, max_size=4),
    length=st.none() | st.integers(4, 40),
)
def test_texts_become_the_same_arrays(both: tuple[Any, PlainTokenizer], texts: list[str], length: int | None) -> None:
    full, plain = both
    texts = [f"{text} a" for text in texts]  # no text without tokens
    names = [name for name in NAMES if name in full.model_input_names]
    expected, got = rows(full, texts, names, length), rows(plain, texts, names, length)
    for batch, batch_expected in [*zip(got, expected, strict=True), *zip(
        [TextInputs().collate(plain, got)], [TextInputs().collate(full, expected)], strict=True
    )]:  # fmt: skip
        assert batch.keys() == batch_expected.keys()
        for name, array in batch_expected.items():
            np.testing.assert_array_equal(batch[name], array)


@settings(max_examples=10)
@given(pairs=st.lists(st.tuples(st.sampled_from(CORPUS), st.text(max_size=20)), min_size=1, max_size=3))
def test_pairs_become_the_same_arrays(both: tuple[Any, PlainTokenizer], pairs: list[tuple[str, str]]) -> None:
    full, plain = both
    first, second = [list(texts) for texts in zip(*pairs, strict=True)]
    expected = full(first, second, truncation=True, max_length=12)
    got = plain(first, second, truncation=True, max_length=12)
    for name in set(NAMES) & set(full.model_input_names):
        assert got[name] == expected[name]


@settings(max_examples=20)
@given(
    inputs=st.lists(
        st.sampled_from(CORPUS) | st.tuples(st.sampled_from(CORPUS), st.sampled_from(CORPUS)), min_size=1, max_size=5
    ),
    length=st.none() | st.integers(6, 40),
)
def test_texts_and_pairs_of_one_batch_become_the_same_arrays(
    both: tuple[Any, PlainTokenizer], inputs: list[Any], length: int | None
) -> None:
    full, plain = both
    names = [name for name in NAMES if name in full.model_input_names]
    expected, got = rows(full, inputs, names, length), rows(plain, inputs, names, length)
    for value, row, row_expected in zip(inputs, got, expected, strict=True):
        texts = (value,) if isinstance(value, str) else value
        own = full(*texts, truncation=True, max_length=length)  # of transformers alone, one by one
        for name in names:
            np.testing.assert_array_equal(row[name], row_expected[name])
            assert row[name].tolist() == own[name]


@settings(max_examples=40)
@given(
    pair=st.tuples(*[st.lists(st.sampled_from([*CORPUS, "", "a", "ﬁ 😀"]), min_size=1, max_size=4).map(" ".join)] * 2),
    length=st.integers(4, 40),
)
def test_a_long_pair_is_cut_as_tokenizers_does(both: tuple[Any, PlainTokenizer], pair: Any, length: int) -> None:
    full, _plain = both
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmlora.long_pairs._LONG", 0)
        own = [encode(processor, [TextPair(*pair)], length) for processor in both]
    expected = full([pair[0]], [pair[1]], truncation=True, max_length=length)
    for got in own:
        for name in set(NAMES) & set(full.model_input_names):
            assert got[name] == expected[name]


def test_very_long_pairs_take_no_more_than_their_length(both: tuple[Any, PlainTokenizer]) -> None:
    """``tokenizers`` alone would keep every piece of one text with every piece of the other: gigabytes."""
    long = "Yes it rained all morning " * 10_000
    for processor in both:
        (ids,) = encode(processor, [TextPair(long, long)], 24)["input_ids"]
        assert len(ids) == 24


def test_token_types_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    """A tokenizer that makes none trained its model with all tokens of the first type, whatever reads its files."""
    for kind, types in (("BertTokenizer", [0, 0, 0, 1, 1]), ("DistilBertTokenizer", [0, 0, 0, 0, 0])):
        vocab = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])}
        directory = tmp_path / kind
        getattr(transformers, kind)(vocab=vocab).save_pretrained(directory)
        full = AutoTokenizer.from_pretrained(directory)
        written = tmp_path / f"{kind} of a bundle"
        written.mkdir()
        write_side_files(written, directory, {}, full)
        for reader in (AutoTokenizer.from_pretrained(written), PlainTokenizer.open(written)):
            (row,) = rows(reader, [("a", "b")], list(NAMES), None)
            assert row["token_type_ids"].tolist() == types


def test_what_a_processor_is_asked_for_is_the_same(both: tuple[Any, PlainTokenizer]) -> None:
    full, plain = both
    for name in ("padding_side", "truncation_side", "pad_token_id", "pad_token_type_id"):
        assert getattr(plain, name) == getattr(full, name)
    assert TextInputs().length_limit(plain) == TextInputs().length_limit(full)
    assert TextInputs().essence(plain) == TextInputs().essence(full)


CHAINS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"size": {"height": 16, "width": 24}},
    "DeiTImageProcessor": {"size": {"height": 20, "width": 20}, "crop_size": {"height": 16, "width": 17}},
    "BitImageProcessor": {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}},
    "CLIPImageProcessor": {"size": {"shortest_edge": 15}, "crop_size": {"height": 21, "width": 16}},
    "ChineseCLIPImageProcessor": {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}},
    "SiglipImageProcessor": {"size": {"height": 16, "width": 16}, "rescale_factor": 1 / 127.5},
    "BlipImageProcessor": {"size": {"height": 16, "width": 16}, "do_normalize": False},
    "PvtImageProcessor": {"size": {"height": 16, "width": 16}, "do_rescale": False},
    "MobileNetV1ImageProcessor": {
        "size": {"shortest_edge": 20, "longest_edge": 23},
        "crop_size": {"height": 9, "width": 9},
    },
}


@pytest.mark.parametrize("saved", [True, False], ids=["as saved", "as on the hub"])
@pytest.mark.parametrize("kind", CHAINS)
def test_images_become_the_same_pixels(kind: str, saved: bool, tmp_path: Path) -> None:
    values = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], **CHAINS[kind]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **values}))
    full = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    if saved:
        full.save_pretrained(tmp_path)
    plain = PlainImageProcessor.open(tmp_path)
    for number, shape in enumerate([(40, 30), (16, 16), (13, 50), (200, 7), (20, 20)]):
        image = draw_image(number).resize(shape, Image.Resampling.BILINEAR)
        expected = full([image], return_tensors="np")["pixel_values"]
        got = plain([image])["pixel_values"]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, np.asarray(expected, np.float32))


def test_what_needs_transformers_says_so(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ConvNextImageProcessor"}))
    with pytest.raises(CheckpointError, match=r"ConvNextImageProcessor\) needs transformers: run  pip install"):
        PlainImageProcessor.open(tmp_path)
    with pytest.raises(CheckpointError, match="is not stored as tokenizer.json, and without transformers"):
        PlainTokenizer.open(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no usable tokenizer"):
        PlainTokenizer.open(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["a.B", None]}}))
    with pytest.raises(CheckpointError, match="comes with code of its own"):
        PlainTokenizer.open(tmp_path)
