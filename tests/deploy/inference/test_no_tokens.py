"""A text that tokenizes to nothing gives one sentence everywhere, and one that leaves special tokens gives its answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Regex
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rmlora_deploy import load
from tests.helpers.answers import make_adapter, make_base
from tests.helpers.cli import fails, run, tokenizer
from tests.helpers.handmade import word_bundle
from tests.helpers.servers import ask, serving

NOTHING = "\u200b…"
MESSAGE = "The text '\\u200b…' has no tokens: the model's tokenizer drops all of its characters"


def dropping(*, special: bool = False) -> PreTrainedTokenizerFast:
    """Return the tests' tokenizer, which now drops everything but ASCII letters, digits and spaces."""
    made = tokenizer()
    made.backend_tokenizer.normalizer = Replace(Regex("[^a-z0-9 ]"), "")
    if special:
        made.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    return made


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_predict_embed_and_serve_say_so(task: str, tmp_path: Path) -> None:
    labels = ("red", "green", "blue") if task == "text-classification" else ()
    bundle = word_bundle(tmp_path / "words", labels=labels, task=task)
    dropping().save_pretrained(bundle)
    fails(3, MESSAGE, "predict", bundle, "w1", NOTHING)
    with serving({"words": bundle}) as server:
        path = "/v1/embeddings" if not labels else "/classify"
        refused = ask(server.url, path, {"model": "words", "input": ["w1", NOTHING]})
        assert refused.status == 400 and MESSAGE in refused.message
        assert ask(server.url, path, {"model": "words", "input": ["w1"]}).status == 200


def test_special_tokens_alone_are_answered(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path / "words")
    dropping(special=True).save_pretrained(bundle)
    (answer,) = load(bundle).predict([NOTHING])  # type: ignore[union-attr]
    assert answer.probability == pytest.approx(1 / 3)


def test_data_of_export_and_verify(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "one label")
    adapter = make_adapter(base, tmp_path / "adapter")
    dropping().save_pretrained(base)
    rows = [{"text": text, "label": "red"} for text in ("w1 w2", NOTHING)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--data", tmp_path / "data.jsonl")
    fails(3, MESSAGE, "export", base, "-a", adapter, "-o", tmp_path / "no", *data)
    assert run("export", base, "-a", adapter, "-o", tmp_path / "bundle").code == 0
    fails(3, "has no tokens", "verify", tmp_path / "bundle", *data)
