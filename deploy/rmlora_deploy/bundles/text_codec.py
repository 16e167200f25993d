"""Between texts and tokens for a language model: with the package ``tokenizers`` alone, so every machine has the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rmlora.errors import CheckpointError, InputError, require
from rmlora.library_calls import library_call
from rmlora.readable import is_readable_file
from rmlora.unicode_text import is_unicode
from rmlora_deploy.bundles.chat_template import ChatTemplate, Messages

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Prompt", "TextCodec", "TextStream", "with_system"]

Prompt = str | Messages
"""A text, or a chat."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a character looks like of which not all tokens are there yet."""


def with_system(prompt: str, system: str | None) -> Prompt:
    """Return a chat of a system message and ``prompt`` as the user's; without a system message ``prompt`` as it is."""
    if system is None:
        return prompt
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]


class TextCodec:
    """The tokenizer of a language model, with its chat template if it has one.

    Args:
        tokenizer: of the package ``tokenizers``.
        chat: template of the model; None for one that was not trained on chats.
    """

    def __init__(self, tokenizer: Tokenizer, chat: ChatTemplate | None) -> None:
        self._tokenizer, self.chat = tokenizer, chat

    @classmethod
    def open(cls, directory: Path) -> TextCodec:
        """Read the tokenizer in ``directory``.

        Raises:
            CheckpointError: there is no ``tokenizer.json``, or it is damaged.
            InputError: the chat template cannot be read.
            DependencyError: tokenizers or jinja2 is not installed.
        """
        require("tokenizers", "predict")
        from tokenizers import Tokenizer

        file = directory / "tokenizer.json"
        if not is_readable_file(file):
            raise CheckpointError(
                f"{directory} has no tokenizer.json, which generating text needs: save the tokenizer with a transformers that "
                "writes it (AutoTokenizer … save_pretrained)."
            )
        with library_call(lambda reason: CheckpointError(f"{file} is no tokenizer ({reason}): fetch the model again.")):
            tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer, ChatTemplate.of(directory))

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Return the tokens of a prompt.

        Args:
            prompt: a chat, or a text, which becomes the user's message of a chat if the model has a chat template.
            raw: take a text as it is, for the model to continue.

        Raises:
            InputError: it is empty or not valid Unicode, or is a chat and the model has no chat template.
        """
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InputError("The prompt is empty: give it at least one word.")
            if not is_unicode(prompt):
                raise InputError("The prompt is not valid Unicode: give it as UTF-8.")
            if raw or self.chat is None:
                return self._open_end(prompt)
            prompt = [{"role": "user", "content": prompt}]
        if self.chat is None:
            raise InputError("The model has no chat template, so it takes no messages: give the prompt as a text.")
        if not prompt:
            raise InputError("The chat has no messages: give at least one.")
        text = self.chat.render(prompt)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)  # the template writes them

    def _open_end(self, text: str) -> list[int]:
        """Return the tokens of a text with those that begin one, and without those that some tokenizers end it by."""
        whole, bare = self._tokenizer.encode(text).ids, self._tokenizer.encode(text, add_special_tokens=False).ids
        begin = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), None)
        return list(whole if begin is None else whole[: begin + len(bare)])

    def encode_answer(self, text: str) -> list[int]:
        """Return the tokens of a text that follows a prompt, without those that begin a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


class TextStream:
    """The text of tokens that come one by one.

    Args:
        codec: of the model.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._tokens: list[int] = []
        self._told = ""

    def add(self, token: int) -> str:
        """Return the text that one more token adds; it may be empty, as tokens may hold parts of a character."""
        self._tokens.append(token)
        text = self._codec.decode(self._tokens)
        if text.endswith(_INCOMPLETE):
            return ""
        return self._rest(text)

    def end(self) -> str:
        """Return what was held back."""
        return self._rest(self._codec.decode(self._tokens))

    def _rest(self, text: str) -> str:
        added = text[len(self._told) :]
        self._told = text
        return added
