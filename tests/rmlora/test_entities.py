"""Words of texts, and the entities that tags mark."""

from __future__ import annotations

import pytest

from rmlora.entities import Entity, TagScheme
from rmlora.words import Sentence, word_spans


@pytest.mark.parametrize(
    "text",
    ["Turn on Ann's lamp, please!", "  two  spaces\tand\nlines ", "a_b 5€ «zitiert»", "我爱北京 today", "", "हिन्दी में"],
)
def test_words_are_those_of_berts_tokenizers(text: str) -> None:
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    spaced = BertNormalizer(lowercase=False, strip_accents=False, clean_text=False).normalize_str(text)
    words = [word for word, _ in BertPreTokenizer().pre_tokenize_str(spaced)]
    assert [text[start:stop] for start, stop in word_spans(text)] == words


def test_given_words_are_joined_by_spaces() -> None:
    sentence = Sentence.of(["New York", "is", "big"])
    assert sentence.text == "New York is big" and sentence.given
    assert [sentence.text[a:b] for a, b in sentence.words] == ["New York", "is", "big"]
    assert Sentence.of(sentence) is sentence and not Sentence.of("New York").given


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O B-a I-a O", [("a", 1, 3)]),
        ("B-a B-a I-b I-b", [("a", 0, 1), ("a", 1, 2), ("b", 2, 4)]),
        ("I-a I-a O I-a", [("a", 0, 2), ("a", 3, 4)]),
        ("B-a E-a S-a I-a", [("a", 0, 2), ("a", 2, 3), ("a", 3, 4)]),
        ("B-a L-a U-b", [("a", 0, 2), ("b", 2, 3)]),
        ("", []),
    ],
)
def test_entities_of_tags(tags: str, entities: list[tuple[str, int, int]]) -> None:
    found = TagScheme(prefixed=True).entities(tags.split())
    assert found == [Entity(*entity) for entity in entities]


def test_prefixes_count_only_if_all_tags_have_one() -> None:
    assert TagScheme.of(["O", "B-a", "I-a"]).prefixed
    assert not TagScheme.of(["O", "B-complex", "noun"]).prefixed
    assert not TagScheme.of(["O"]).prefixed
    plain = TagScheme.of(["noun", "verb", "B-side"])
    assert plain.entities(["noun", "noun", "B-side"]) == [Entity("noun", 0, 2), Entity("B-side", 2, 3)]
    assert TagScheme.of(["O", "B-a", "I-a", "B-b"]).labels(["O", "B-a", "I-a", "B-b"]) == ["a", "b"]
