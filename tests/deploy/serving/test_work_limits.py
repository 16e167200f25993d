"""The work of one request is bounded, and done so that others do not wait for it."""

from __future__ import annotations

import base64
import io
import json
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rmlora.text_pair import TextPair
from rmlora.tokenized_texts import encode
from rmlora_deploy.serving import json_child
from rmlora_deploy.serving.json_bodies import JsonBodies, is_quick
from rmlora_deploy.serving.text_prefix import TextPrefix
from tests.helpers.servers import Server, ask, classify, serving, until

LONG = 60.0
CORPUS = [
    "the cat sat on the mat, didn't it?",
    "naïve café — 12 Übergrößen über alles",
    "中文 字 und so weiter  !!",
    "a b c",
]


@pytest.fixture(scope="module")
def server(served: dict[str, Path]) -> Iterator[Server]:
    with serving(served, max_request_characters=1000, max_request_pixels=100_000) as running:
        yield running


# -- limits ----------------------------------------------------------------------------------------------------------


def test_all_texts_together_are_limited(server: Server) -> None:
    answer = ask(server.url, "/classify", {"model": "words", "input": ["w1 " * 200, "w2 " * 200]})
    assert answer.status == 413
    assert "have 1200 characters in all; the limit is 1000 (--max-request-characters)" in answer.message
    assert ask(server.url, "/classify", {"model": "words", "input": ["w1 " * 200]}).status == 200


def image(side: int, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (255, 0, 0)).save(buffer, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_all_images_together_are_limited_before_any_is_decoded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    assert classify(server.url, "colors", image(300))[0][0] > 0.5
    monkeypatch.setattr("rmlora_deploy.serving.images.SentImage.decode", decode)
    answer = ask(server.url, "/classify", {"model": "colors", "input": [image(200)] * 3})
    assert answer.status == 413
    assert "first 3 images have 120000 pixels in all; the limit is 100000 (--max-request-pixels)" in answer.message


def test_a_client_that_is_gone_gets_no_further_image_decoded(
    served: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rmlora_deploy.serving.images import SentImage

    decoded, original = threading.Semaphore(0), SentImage.decode
    count = [0]

    def decode(self: SentImage) -> Any:
        count[0] += 1
        decoded.release()
        time.sleep(0.2)
        return original(self)

    monkeypatch.setattr(SentImage, "decode", decode)
    with serving({"colors": served["colors"]}) as running:
        body = json.dumps({"model": "colors", "input": [image(8)] * 50}).encode()
        head = f"POST /classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])))
        connection.sendall(head.encode() + body)
        assert decoded.acquire(timeout=LONG)
        connection.close()
        time.sleep(1.0)
        assert count[0] <= 3
        assert classify(running.url, "colors", image(8))


# -- texts are cut before they are tokenized -------------------------------------------------------------------------


def _trained(kind: str) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    elif kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="[UNK]")
    made.train_from_iterator(CORPUS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", mask_token="[MASK]")


def _paired(kind: str) -> Any:
    """Return the tokenizer with BERT's special tokens, of which a pair has three."""
    made = _trained(kind)
    special = [(token, made.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return made


TOKENIZERS = {kind: _trained(kind) for kind in ("wordpiece", "bytes", "unigram")}
PAIRED = {kind: _paired(kind) for kind in TOKENIZERS}
PIECES = st.sampled_from(
    ["the", "cat", "didn't", "naïve", "é", "e\u0301", "\u0301", "中文字", " ", "  ", "\n", "\t", "\u00a0", "\u200b", "[MASK]", "x" * 30,
     "!!", "12", "\x00", "😀", "ß", "ﬁ", " [MASK] ", "\u3000", "\r\n", "'s", " 's"]
)  # fmt: skip


@settings(max_examples=150)
@given(
    st.lists(PIECES, min_size=1, max_size=40),
    st.integers(1, 12),
    st.sampled_from(sorted(TOKENIZERS)),
    st.integers(1, 9),
)
def test_a_shortened_text_has_the_same_tokens(pieces: list[str], limit: int, kind: str, times: int) -> None:
    tokenizer = TOKENIZERS[kind]
    shorten = TextPrefix(tokenizer)
    assert shorten.possible
    text = "".join(pieces) * 10 * times
    short = shorten(text, limit)
    assert text.startswith(short)
    whole = tokenizer(text, truncation=True, max_length=limit)
    assert dict(tokenizer(short, truncation=True, max_length=limit)) == dict(whole)


@settings(max_examples=200)
@given(
    st.lists(PIECES, min_size=1, max_size=40),
    st.lists(PIECES, min_size=1, max_size=40),
    st.integers(4, 12),
    st.sampled_from(sorted(TOKENIZERS)),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_a_shortened_pair_has_the_same_tokens(
    first: list[str], second: list[str], limit: int, kind: str, times: int, other_times: int
) -> None:
    tokenizer = PAIRED[kind]
    pair = TextPair("".join(first) * 10 * times, "".join(second) * 10 * other_times)
    short = TextPrefix(tokenizer).pair(pair, limit)
    assert encode(tokenizer, [short], limit) == encode(tokenizer, [pair], limit)


def test_of_a_long_pair_only_what_cannot_change_the_rest_is_cut() -> None:
    shorten = TextPrefix(PAIRED["wordpiece"])  # three special tokens: of 16, 13 tokens are kept
    long, short = "the cat sat on the mat " * 5000, "the cat"
    for pair in (TextPair(short, long), TextPair(long, short)):
        assert sorted(map(len, shorten.pair(pair, 16)))[1] < 2000
    assert shorten.pair(TextPair(long, long), 16) == (long, long)  # the longer one keeps the odd token
    assert max(map(len, shorten.pair(TextPair(long, long), 17))) < 2000


def test_long_texts_are_cut_and_those_that_cannot_be_are_not() -> None:
    shorten = TextPrefix(TOKENIZERS["wordpiece"])
    text = "the cat sat on the mat " * 5000
    assert len(shorten(text, 16)) < 2000
    assert shorten("x" * 100_000, 16) == "x" * 100_000  # no space to cut at
    assert shorten(text, None) == text  # no limit is known
    assert shorten("the cat", 16) == "the cat"


def test_tokenizers_that_may_look_across_spaces_get_the_whole_text() -> None:
    kept = Tokenizer(models.BPE())
    kept.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    spaced = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    spaced.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spaced.add_tokens(["New York"])
    replaced = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    replaced.pre_tokenizer, replaced.normalizer = pre_tokenizers.WhitespaceSplit(), normalizers.Replace("a b", "c")
    unsplit = Tokenizer(models.Unigram())
    for made in (kept, spaced, replaced, unsplit):
        assert not TextPrefix(PreTrainedTokenizerFast(tokenizer_object=made)).possible
    left = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["wordpiece"].backend_tokenizer, truncation_side="left")
    assert not TextPrefix(left).possible


def test_long_texts_are_answered_like_short_ones(served: dict[str, Path]) -> None:
    with serving(served) as running:
        long = "w1 w2 w1 " * 10_000  # truncated to 32 tokens
        short = " ".join(long.split()[:40])
        for model in ("words", "one"):
            answers = [classify(running.url, model, text, "w0") for text in (long, short)]
            np.testing.assert_allclose(*answers, atol=1e-6)


# -- bodies ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bodies() -> Iterator[JsonBodies]:
    made = JsonBodies(256)
    yield made
    made.close()


async def _parse(bodies: JsonBodies, value: Any) -> Any:
    return await bodies.parse(value if isinstance(value, bytes) else json.dumps(value).encode())


def test_large_bodies_are_parsed_in_another_process_with_the_same_result(bodies: JsonBodies) -> None:
    import asyncio

    numbers = list(range(60_000))
    value = {
        "model": "m",
        "input": ["é\ud83d" + "x" * 90_000] * 20,
        "a": {"b": [1, None, {"c": True}]},
        "more": numbers,
    }
    assert not is_quick(json.dumps(value).encode())
    got = asyncio.run(_parse(bodies, value))
    assert isinstance(got["more"], np.ndarray) and got["more"].tolist() == numbers
    assert {**got, "more": numbers} == value
    for data in ([[0.5, 1]] * 40_000, [True, False] * 40_000, [[[1, 2]], [[3, 4]]] * 20_000):
        array = asyncio.run(_parse(bodies, {"data": data, "model": "m"}))["data"]
        assert array.tolist() == np.array(data).ravel().tolist() and array.dtype == np.array(data).dtype
    for bad in (b"[" + b"1," * 70_000, b"\xff" * 70_000, b"[" * 70_000, b"{" * 70_000):
        with pytest.raises(json.JSONDecodeError):
            asyncio.run(_parse(bodies, bad))
    mixed = asyncio.run(_parse(bodies, [[1], "a"] * 40_000))
    assert mixed == [[1], "a"] * 500


@pytest.mark.parametrize("most", [1000, 1500])
def test_no_input_of_a_large_body_is_left_out(most: int) -> None:
    """With --max-inputs 1500 the answers to a list of 1,500 pairs were 1,000."""
    import asyncio

    bodies = JsonBodies(most)
    pairs = [["one, two, three, four, five, six, seven", f"{number}"] for number in range(1500)]
    try:
        assert not is_quick(json.dumps({"inputs": pairs}).encode())
        got = asyncio.run(_parse(bodies, {"inputs": pairs}))["inputs"]
    finally:
        bodies.close()
    assert got == pairs[: most + 1]  # one more than are taken, so that the request is refused


def test_a_hostile_body_stops_nobody(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}) as running:
        classify(running.url, "words", "w1")
        hostile = b'{"model": "words", "input": [' + b"{}," * 2_700_000 + b"{}]}"
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(ask(running.url, "/classify", hostile)))
        thread.start()
        slowest = 0.0
        while thread.is_alive():
            began = time.monotonic()
            classify(running.url, "words", "w2")
            slowest = max(slowest, time.monotonic() - began)
        assert answers[0].status == 400 and "input" in answers[0].message
        assert slowest < 0.5, slowest


def test_a_parser_that_dies_is_replaced(bodies: JsonBodies) -> None:
    import asyncio

    value = [list(range(300))] * 300
    asyncio.run(_parse(bodies, value))
    assert bodies._process is not None
    bodies._process.kill()
    bodies._process.wait()
    assert asyncio.run(_parse(bodies, value)).size == 90_000


def test_a_parser_that_cannot_be_started_is_the_servers_error(
    served: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"model": "words", "input": "w1", "more": [[n] for n in range(30_000)]}).encode()
    with serving({"words": served["words"]}) as running, monkeypatch.context() as patch:
        patch.setattr("sys.executable", "/nowhere/python")
        answer = ask(running.url, "/classify", body)
        assert (answer.status, answer.message.partition(":")[0]) == (
            503,
            "The server cannot read large bodies at the moment",
        )
        patch.undo()
        assert ask(running.url, "/classify", body).status == 200


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits on memory")
@pytest.mark.parametrize(("megabytes", "kind"), [(150, "value"), (150, "memory"), (4000, "value")])
def test_the_parser_keeps_to_what_memory_it_has(megabytes: int, kind: str) -> None:
    """A container's limit may be lower than the parser's own, and too little memory is no invalid JSON."""
    import resource

    body = json.dumps([[n] for n in range(30_000 if kind == "value" else 2_000_000)]).encode()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    done = subprocess.run(
        [sys.executable, "-I", str(Path(json_child.__file__)), "1000"],
        input=struct.pack("<Q", len(body)) + body,
        capture_output=True,
        preexec_fn=limit,
        check=True,
    )
    assert pickle.loads(done.stdout[8:])[0] == kind  # noqa: S301 - from our own process


def test_large_tensors_are_read(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}, max_inputs=1024, max_queue=4096) as running:
        ids = [[3 + row % 3] * 32 for row in range(1000)]
        tensors = [
            {"name": name, "datatype": "INT64", "shape": [1000, 32], "data": data}
            for name, data in (("input_ids", ids), ("attention_mask", [1] * 32_000))
        ]
        answer = ask(running.url, "/v2/models/words/infer", {"inputs": tensors})
        assert answer.status == 200, answer.text
        scores = np.array(answer.body["outputs"][0]["data"]).reshape(1000, 3)
        assert scores.argmax(1).tolist() == [row % 3 for row in range(1000)]


# -- clients that do not read ----------------------------------------------------------------------------------------


def test_a_client_that_never_reads_is_closed(served: dict[str, Path]) -> None:
    with serving({"words": served["words"]}, write_timeout=0.5) as running:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
        request = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
        connection.settimeout(0.2)

        def closed() -> bool:
            try:
                connection.sendall(request * 20)
            except TimeoutError:  # the server does not read on while its answers are not read
                return False
            except OSError:
                return True
            return False

        until(closed)
        assert ask(running.url, "/healthz").status == 200
        connection.close()
