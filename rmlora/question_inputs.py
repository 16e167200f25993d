"""Questions with the contexts that hold their answers, as a kind of inputs (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rmlora.errors import InputError
from rmlora.inputs import Arrays, TextInputs
from rmlora.offsets import OFFSETS, require_offsets
from rmlora.question_windows import SOURCES, Window, windows_of
from rmlora.sample_data import SENTENCES
from rmlora.text_pair import InputForm, TextPair
from rmlora.tokenized_texts import check_texts

if TYPE_CHECKING:
    from rmlora.training.features import Examples

__all__ = ["QuestionInputs"]

_QUESTIONS = ("Who?", "What did they do?", "When was that?", "How many are there?", "Where is it?")
"""Built-in questions: short, to leave room for contexts in models that read little at once."""


class QuestionInputs(TextInputs):
    """Pairs of a question and its context; a long context becomes several rows (:mod:`rmlora.question_windows`).

    Rows have two arrays that are no inputs of a graph: ``offset_mapping [tokens, 2]`` and ``sequence_ids [tokens]``. Batches are
    padded on the right, so a row's tokens are the first ones of its output.
    """

    column_names: ClassVar[tuple[str, ...]] = ("question", "query")
    pair_columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("question", "context"), ("question", "passage"), ("question", "text"), ("query", "context"), ("query", "passage"),
    )  # fmt: skip
    columns_compete = False
    form = "pair"
    reads_whole = True
    pads_right = True
    marks = (OFFSETS, SOURCES)

    def sample(self, count: int, form: InputForm = "pair") -> list[Any]:
        """Return questions about one to three sentences."""
        size = len(SENTENCES)
        return [
            TextPair(
                _QUESTIONS[number % len(_QUESTIONS)],
                " ".join(SENTENCES[(number + 2 + i) % size] for i in range(1 + number % 3)),
            )
            for number in range(count)
        ]

    def load_processor(self, directory: Path, *, trust_remote_code: bool = False) -> Any:
        """Return the tokenizer in ``directory``.

        Raises:
            CheckpointError: there is none, or it does not say which characters its tokens stand for.
        """
        tokenizer = super().load_processor(directory, trust_remote_code=trust_remote_code)
        require_offsets(tokenizer, directory, need="answers in a text")
        return tokenizer

    def parts(self, processor: Any, value: Any, length: int | None) -> list[Any]:
        """Return the windows of a question and its context.

        Raises:
            InputError: ``value`` is no pair of texts, or the question is too long.
        """
        pair = self.locate(value, "")
        if not isinstance(pair, TextPair):
            raise InputError(f"{str(value)[:40]!r} is a question without a context: give both, as two texts.")
        check_texts([pair])
        limit = length or self.length_limit(processor) or 0
        return list(windows_of(processor, pair, limit))

    def rows(
        self, processor: Any, inputs: Sequence[Any], *, lengths: Sequence[int | None], names: Sequence[str]
    ) -> list[Arrays]:
        """Return the arrays of windows, or of the first window of each pair; :meth:`parts` makes all."""
        made = []
        for value, length in zip(inputs, lengths, strict=True):
            window = value if isinstance(value, Window) else self.parts(processor, value, length)[0]
            if missing := [name for name in names if name not in window.arrays]:
                raise InputError(
                    f"The tokenizer does not make '{missing[0]}', which the graph takes: the bundle is inconsistent."
                )
            made.append({name: window.arrays[name] for name in (*names, OFFSETS, SOURCES)})
        return made

    def examples(self, inputs: Sequence[Any], labels: Sequence[Any], processor: Any, max_length: int) -> Examples:
        """Return questions with the answer of each, window by window."""
        from rmlora.training.question_rows import QuestionRows

        return QuestionRows(inputs, labels, self, processor, max_length)
