"""Shortens long texts before they are tokenized, where that provably makes no difference to the tokens that are kept.

A text is truncated to a model's limit after it was tokenized, which for 100,000 characters is a thousand times the work
that the model's tokens need. Most tokenizers treat the parts between spaces independently: they split texts at spaces
first, and normalize without looking across one. For those, the tokens of a text that is cut in front of a space are the
first tokens of the whole text. So a text is cut there, far enough that more tokens remain than are kept. Texts of other
tokenizers are not cut.

Of a pair, the longer text is truncated first, to the length of the other, and then both are, evenly: if an odd number of
tokens is kept, the longer one keeps the odd one. So a pair is cut only where it stays known which text is the longer one.
"""

from __future__ import annotations

import json
from typing import Any

from rmlora.text_pair import TextPair

__all__ = ["TextPrefix"]

_CHARACTERS = 8
"""Characters for each token that is kept in the first attempt; four times as many in each further one."""
_EXTRA = 8
"""Tokens that must remain beyond the limit."""
_NO_LIMIT = 100_000
"""Tokenizers without a length limit report a number far above this."""

_NORMALIZERS = {
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend", "Strip", "StripAccents",
}  # fmt: skip
"""Normalizers that change a character depending on its neighbors at most, and never across a space."""


class TextPrefix:
    """Shortens texts for one tokenizer; not safe to use from several threads at once.

    Args:
        tokenizer: from transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.possible = _cuts_at_spaces(tokenizer)
        """False if texts of this tokenizer are not cut."""

    def __call__(self, text: str, max_length: int | None) -> str:
        """Return the beginning of ``text``, or all of it, with the same tokens after truncation to ``max_length``.

        Args:
            text: any.
            max_length: tokens that are kept; None for the tokenizer's own limit.
        """
        limit = max_length or getattr(self._tokenizer, "model_max_length", None)
        if not self.possible or not limit or limit > _NO_LIMIT:
            return text
        characters = _CHARACTERS * limit
        while 2 * characters < len(text):
            prefix = text[: _cut(text, characters)]
            if prefix and self._count(prefix) >= limit + _EXTRA:
                return prefix
            characters *= 4
        return text

    def input(self, value: str | TextPair, max_length: int | None) -> str | TextPair:
        """Return a text, or a pair of texts, shortened; other arguments as for a text."""
        return self.pair(value, max_length) if isinstance(value, TextPair) else self(value, max_length)

    def pair(self, pair: TextPair, max_length: int | None) -> TextPair:
        """Return the beginnings of both texts, or all of them, with the same tokens after truncation; arguments as for a text."""
        short = TextPair(*(self(text, max_length) for text in pair))
        cut = [one != whole for one, whole in zip(short, pair, strict=True)]
        if not any(cut) or self._kept_of_pair(max_length) % 2 == 0:
            return short
        if all(cut):
            return pair
        longer, shorter = short if cut[0] else (short.second, short.first)
        return short if self._count(longer) > self._count(shorter) else pair

    def _kept_of_pair(self, max_length: int | None) -> int:
        """Return how many tokens of a pair's texts are kept."""
        limit: int = max_length or self._tokenizer.model_max_length
        return limit - int(self._tokenizer.num_special_tokens_to_add(pair=True))

    def _count(self, text: str) -> int:
        made = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
        return len(made["input_ids"])


def _cut(text: str, end: int) -> int:
    """Return the index of the last space before ``end`` that does not follow white space; 0 if there is none."""
    cut = text.rfind(" ", 0, end)
    while cut > 0 and text[cut - 1].isspace():
        cut = text.rfind(" ", 0, cut)
    return max(cut, 0)


def _cuts_at_spaces(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "truncation_side", "right") != "right":
        return False
    if any(" " in token.content for token in backend.get_added_tokens_decoder().values()):
        return False
    return all(map(_is_local, _parts(backend.normalizer))) and _splits_at_spaces(_parts(backend.pre_tokenizer))


def _parts(component: Any) -> list[dict[str, Any]]:
    """Return a normalizer or pre-tokenizer as the JSON of its parts, in order."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    pending, parts = [state], list[dict[str, Any]]()
    while pending:
        part = pending.pop(0)
        nested = part.get("normalizers") or part.get("pretokenizers")
        if nested is not None:
            pending = [*nested, *pending]
        else:
            parts.append(part)
    return parts


def _is_local(part: dict[str, Any]) -> bool:
    """Return True if a normalizer does not look across a space."""
    if part["type"] == "Replace":
        pattern = next(iter(part["pattern"].values()))
        return pattern in (" ", " {2,}", "``", "''")
    return part["type"] in _NORMALIZERS


def _splits_at_spaces(parts: list[dict[str, Any]]) -> bool:
    """Return True if a pre-tokenizer of these parts makes every space a boundary."""
    for part in parts:
        kind = part["type"]
        if kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit"):
            return True
        if kind == "ByteLevel":  # it replaces spaces, so nothing after it sees them
            return bool(part.get("use_regex", True))
        if kind == "Metaspace":
            return bool(part.get("split", True))
        if kind not in ("Digits", "Punctuation"):
            return False
    return False
