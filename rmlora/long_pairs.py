"""Tokenizing pairs of long texts in time and memory that grow with their length (no torch).

The package ``tokenizers`` keeps what it cuts off: of a pair, every piece of one text together with every piece of the other.
A pair of two texts of 60,000 characters, cut to 128 tokens, takes eight gigabytes that way. Here both texts are tokenized by
themselves, cut by the same rule, and put into the pattern of special tokens that the tokenizer has for pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rmlora.text_pair import TextPair

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = ["FilledPair", "encode_pairs", "fill_pair", "kept_of_pair", "own_tokenizer"]

_LONG = 16
"""Characters for each token that is kept from which a pair is long."""
_NO_LIMIT = 10**20
"""Tokenizers without a length limit report a number above this."""

_NAMES = {"input_ids", "attention_mask", "token_type_ids"}
"""What is made here; a tokenizer that makes more is left to itself."""

Encoded = dict[str, list[list[int]]]


class FilledPair(NamedTuple):
    """The tokens of a pair."""

    ids: list[int]
    types: list[int]
    sources: list[int | None]
    """Which text a token is of, 0 or 1; None for special tokens."""


def own_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer of the package ``tokenizers`` in another one; None if it has none."""
    return getattr(tokenizer, "backend_tokenizer", None) or getattr(tokenizer, "backend", None)


def encode_pairs(tokenizer: Any, pairs: Sequence[TextPair], max_length: int | None) -> Encoded:
    """Return input name → one list of numbers for each pair, as ``tokenizer`` makes them.

    Args:
        tokenizer: transformers', or :class:`rmlora.plain_tokenizer.PlainTokenizer`.
        pairs: at least one.
        max_length: tokens that are kept, special ones included; None for the tokenizer's own limit.
    """
    own_limit: int = getattr(tokenizer, "model_max_length", None) or _NO_LIMIT
    limit = max_length or own_limit
    backend = own_tokenizer(tokenizer)
    long = [backend is not None and len(pair.first) + len(pair.second) > _LONG * limit for pair in pairs]
    if not any(long):
        return _encode(tokenizer, pairs, max_length)
    names = _encode(tokenizer, [TextPair("a", "a")], max_length).keys()
    if not names <= _NAMES:
        return _encode(tokenizer, pairs, max_length)
    made: Encoded = {name: [] for name in names}
    for pair, is_long in zip(pairs, long, strict=True):
        row = _encode_long(tokenizer, backend, pair, limit) if is_long else _encode(tokenizer, [pair], max_length)
        for name in names:
            made[name] += row[name]
    return made


def _encode(tokenizer: Any, pairs: Sequence[TextPair], max_length: int | None) -> Encoded:
    firsts, seconds = zip(*pairs, strict=True)
    return dict(tokenizer(list(firsts), list(seconds), truncation=True, max_length=max_length))


def _encode_long(tokenizer: Any, backend: Tokenizer, pair: TextPair, limit: int) -> Encoded:
    """Return the arrays of one pair."""
    backend.no_truncation()
    backend.no_padding()
    pattern = backend.encode("a", "a")
    alone = [backend.encode(text, add_special_tokens=False).ids for text in pair]
    specials = sum(source is None for source in pattern.sequence_ids)
    kept = kept_of_pair(len(alone[0]), len(alone[1]), max(0, limit - specials))
    left = getattr(tokenizer, "truncation_side", "right") == "left"
    texts = [ids[len(ids) - count :] if left else ids[:count] for ids, count in zip(alone, kept, strict=True)]
    made = fill_pair(pattern, texts)
    return {"input_ids": [made.ids], "attention_mask": [[1] * len(made.ids)], "token_type_ids": [made.types]}


def fill_pair(pattern: Encoding, texts: Sequence[list[int]]) -> FilledPair:
    """Return the tokens of ``pattern``, any pair, with each of its two texts replaced by the ids in ``texts``."""
    made = FilledPair([], [], [])
    seen: set[int] = set()
    for token, kind, source in zip(pattern.ids, pattern.type_ids, pattern.sequence_ids, strict=True):
        if source is None:
            part = [token]
        elif source not in seen:
            part = texts[source]
            seen.add(source)
        else:  # the text of the pattern has more than one token
            continue
        made.ids.extend(part)
        made.types.extend([kind] * len(part))
        made.sources.extend([source] * len(part))
    return made


def kept_of_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens are kept of two texts, as ``tokenizers`` does with ``longest_first``.

    The longer text is cut to the length of the other, then both are, evenly; an odd token is the longer text's.

    Args:
        first: tokens of the first text.
        second: tokens of the second text.
        room: tokens that are kept of both.
    """
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return (long, short) if first > second else (short, long)
